"""Drive the flow of one answer with the tokens and scores that the engine brings, as they come."""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import nan
from typing import Literal

from anydepth.audit.answer import Account
from anydepth.audit.trail import AuditError
from anydepth.flow import Check, Command, Decode, Flow, Halt, Noted, Outcome, Plan, Release, Reply, guarded
from anydepth.types import Answer, Decoded, Released, Score, Verdict

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class FlowFeed:
    """One answer under guard: `begin`, then `push` tokens, `answer` checks, take what is `released`.

    Attributes:
        plan: What its flow needs to know.
        account: Its audit records.
        prompt_tokens: Length of the prompt without the prefill.
        end_token_ids: Tokens that end a turn; they have no depth.
        decode: Text of token ids, for an audit that keeps text; None if it does not.
        released: Ids of tokens that may leave, in order; whoever sends them takes them out.
        outcome: How the answer ended, once it has.
        withheld: Tokens that will never leave, those included that were sampled during the last check.
        error: Kind of the failure that ended the answer, or None.
    """

    plan: Plan
    account: Account
    prompt_tokens: int
    end_token_ids: frozenset[int]
    decode: Callable[[tuple[int, ...]], str] | None = None
    released: list[int] = field(default_factory=list)
    outcome: Outcome | None = None
    withheld: int = 0
    error: str | None = None
    _flow: Flow | None = None
    _command: Command | None = None
    _depth: int = 0
    _tokens: deque[int] = field(default_factory=deque)
    _ended: Literal["stop", "length"] | None = None
    _known: tuple[int, Score] | None = None

    def begin(self, inside: Mapping[int, Score | Exception]) -> None:
        """Start the flow; `inside` has what the checks inside the prefill replied, a depth."""
        self.plan = replace(self.plan, inside=inside)
        self._flow, self._depth = guarded(self.plan), self.plan.prefill
        self._command = next(self._flow)

    @property
    def begun(self) -> bool:
        """True once the flow has been started."""
        return self._flow is not None

    @property
    def over(self) -> bool:
        """True once the answer has ended: nothing more will be released."""
        return self.outcome is not None

    @property
    def halted(self) -> bool:
        """True if the guard has cut the answer."""
        return self.outcome is not None and self.outcome.finish_reason == "content_filter"

    @property
    def due(self) -> int | None:
        """The depth at which a check is waited for, or None."""
        return self._command.depth if isinstance(self._command, Check) else None

    def push(self, token_ids: list[int], ended: Literal["stop", "length"] | None = None) -> None:
        """Bring tokens that the model has sampled, and whether the answer ends with them."""
        self._tokens.extend(token_ids)
        self._ended = ended
        self._advance()

    def answer(self, depth: int, reply: Score | Exception) -> None:
        """Bring the result of the check at `depth`; any other depth than the one that is due is a failed check."""
        if self.due is None:
            return
        if depth != self.due:
            reply = RuntimeError(f"the check at depth {self.due} was made at depth {depth}")
        self._known = (depth, reply) if isinstance(reply, Score) else None
        self._send(reply)
        self._advance()

    def broken(self, outcome: str) -> None:
        """End the account of an answer that will not be finished: `cancelled`, `shutdown` or `error`."""
        if not self.over:
            self.withheld += len(self._tokens)
            with suppress(AuditError):
                self.account.broken(outcome)

    def _advance(self) -> None:
        """Carry out commands until one has to wait for the engine."""
        try:
            while not self.over:
                command = self._command
                if isinstance(command, Decode) and (self._tokens or self._ended):
                    self._send(self._decoded(command.n))
                elif isinstance(command, Check) and self._known is not None and self._known[0] == command.depth:
                    self._send(self._known[1])  # an end of turn alone after a check: the same state, the same reading
                elif isinstance(command, Noted):
                    self.account.checked(command.check)
                    self._send(None)
                elif isinstance(command, Release):
                    self._release(command.token_ids)
                    self._send(None)
                elif isinstance(command, Halt):
                    self.withheld = command.withheld + len(self._tokens)
                    self.error = self._failure()
                    self._send(None)
                else:
                    return
        except AuditError as error:
            logger.error("the audit trail cannot be written, the answer is stopped: %s", error)
            self._stop(error)

    def _failure(self) -> str | None:
        last = self.account.checks[-1] if self.account.checks else {}
        return last.get("error")

    def _decoded(self, n: int) -> Decoded:
        """Up to `n` tokens of those that wait, and the end if they are the last."""
        taken = tuple(self._tokens.popleft() for _ in range(min(n, len(self._tokens))))
        if self._tokens or self._ended is None:
            return Decoded(taken)
        ends = int(bool(taken) and taken[-1] in self.end_token_ids)
        return Decoded(taken, self._ended, ends)

    def _release(self, token_ids: tuple[int, ...]) -> None:
        """Write down that the tokens leave, then let them; AuditError if that cannot be written."""
        self._depth += len(token_ids)
        text = "" if self.decode is None else self.decode(token_ids)
        self.account.released(Released(text, token_ids, self._depth))
        self.released += token_ids

    def _send(self, reply: Reply) -> None:
        assert self._flow is not None
        try:
            self._command = self._flow.send(reply)
        except StopIteration as end:
            self._command = None
            self.outcome = end.value
            self.account.finished(self._answer(end.value))

    def _stop(self, error: AuditError) -> None:
        """End an answer whose account cannot be kept."""
        self.withheld += len(self._tokens)
        self.error = type(error).__name__
        self._command = None
        verdict = Verdict(True, nan, self.account.depth, "error", 1)
        generated = self.account.depth - self.plan.prefill
        self.outcome = Outcome("content_filter", verdict, (), (), generated)
        with suppress(AuditError):
            self.account.broken("audit")

    def _answer(self, outcome: Outcome) -> Answer:
        return Answer(
            text="",
            token_ids=(),
            finish_reason=outcome.finish_reason,
            verdict=outcome.verdict,
            checks=outcome.checks,
            windows=outcome.windows,
            prompt_tokens=self.prompt_tokens,
            prefill_tokens=self.plan.prefill,
            generated_tokens=outcome.generated,
        )
