"""Write one answer: its text, its account and its events, as the guard's flow commands."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from anydepth.flow import Calls, Command, Finish, Halt, Outcome, Release, Reply
from anydepth.templates.template import Prompt
from anydepth.text import TextStream
from anydepth.types import Answer, Checked, Event, Finished, Halted, Released

if TYPE_CHECKING:
    from anydepth.audit.answer import Account

logger = logging.getLogger(__name__)


HasCalls = Callable[[tuple[int, ...]], object]
"""Tells of the tokens of an answer whether they have tool calls, by what is true of the result."""


class AnswerWriter:
    """Carries out what one flow commands and needs no model for.

    Args:
        prompt: The prompt of the answer.
        refusal: Text that a halted answer ends with.
        decode: Text of token ids.
        account: Writes the answer's records before its tokens leave; None if there are none.
        usage: Tells what the answer has used so far, where the backend knows more than its tokens.
        calls: Tells of the released tokens whether they have tool calls that are kept; the account tells it, too.

    Attributes:
        failure: What kept the answer from being recorded, or None.
    """

    def __init__(
        self,
        prompt: Prompt,
        refusal: str,
        decode: Callable[[Sequence[int]], str],
        account: "Account | None" = None,
        usage: Callable[[], Mapping[str, Any] | None] = lambda: None,
        calls: "HasCalls | None" = None,
    ) -> None:
        self.failure: Exception | None = None
        self._usage, self._calls = usage, calls
        self._prompt, self._refusal, self._account = prompt, refusal, account
        self._stream = TextStream(decode, prompt.ids[prompt.start :])
        self._text: list[str] = []
        self._ids: list[int] = []
        self._events: list[Event] = []

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The released tokens."""
        return tuple(self._ids)

    def take(self) -> list[Event]:
        """The events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def write(self, command: Command | Outcome) -> Reply:
        """Carry out a command and return the reply to it."""
        if isinstance(command, Checked):
            self._events.append(command)
            if self._account is not None:
                self._account.checked(command.check)
        elif isinstance(command, Release):
            return self._release(command.token_ids)
        elif isinstance(command, Halt):
            self._events.append(Halted(command.verdict, self._refusal, command.withheld))
        elif isinstance(command, Calls):
            known = [each for each in (self._calls, self._account and self._account.calls) if each is not None]
            return any(bool(each(self.token_ids)) for each in known)
        elif isinstance(command, Finish):
            return self._finish(command.outcome)
        elif isinstance(command, Outcome):
            self._events.append(Finished(self.answer(command)))
        return None

    def answer(self, outcome: Outcome) -> Answer:
        """The answer as it has ended."""
        text = "".join(self._text)
        if outcome.finish_reason == "content_filter":
            text += ("\n\n" if text.strip() else "") + self._refusal
        return Answer(
            text=text,
            token_ids=tuple(self._ids),
            finish_reason=outcome.finish_reason,
            verdict=outcome.verdict,
            checks=outcome.checks,
            windows=outcome.windows,
            prompt_tokens=self._prompt.start,
            prefill_tokens=self._prompt.prefill,
            generated_tokens=outcome.generated,
            usage=self._usage(),
        )

    def _release(self, token_ids: tuple[int, ...]) -> Exception | None:
        event = Released(self._stream.push(token_ids), token_ids, self._depth + len(token_ids))
        failure = self._store(lambda account: account.released(event))
        if failure is None:
            self._ids.extend(token_ids)
            self._text.append(event.text)
            self._events.append(event)
        return failure

    def _finish(self, outcome: Outcome) -> Exception | None:
        if self.failure is not None:
            return None  # the record says already that the answer was broken off
        # A partial character is dropped from a halted answer: the token that would complete it is withheld.
        rest = "" if outcome.finish_reason == "content_filter" else self._stream.flush()
        self._text.append(rest)
        failure = self._store(lambda account: account.finished(self.answer(outcome)))
        if failure is not None:
            self._text.pop()
        elif rest:
            self._events.append(Released(rest, (), self._depth))
        return failure

    @property
    def _depth(self) -> int:
        return self._prompt.prefill + len(self._ids)

    def _store(self, store: "Callable[[Account], None]") -> Exception | None:
        """Store something; what kept it from being stored, whatever it was, halts the answer."""
        if self._account is None:
            return None
        try:
            store(self._account)
        except Exception as error:
            if not self._account.closed:  # else it was given up meanwhile, and has its record
                logger.error("an answer is stopped: its record cannot be stored (%s)", type(error).__name__)
            self.failure = error
            self._account.broken("audit")
            return error
        return None
