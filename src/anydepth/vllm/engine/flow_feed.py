"""Drive the flow of one answer with the tokens and scores that the engine brings, as they come."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from anydepth.audit.answer import Account
from anydepth.flow import Check, Command, Decode, Flow, Outcome, Plan, Reply, guarded, step
from anydepth.schedule import next_check
from anydepth.types import Answer, Decoded, Halted, Released, Score
from anydepth.writer import AnswerWriter


@dataclass(slots=True)
class FlowFeed:
    """One answer under guard: `begin`, then `push` tokens, `answer` checks, take what is `released`.

    Attributes:
        plan: What its flow needs to know.
        account: Its audit records.
        end_token_ids: Tokens that end a turn; they have no depth.
        decode: Text of token ids, for an audit that keeps text; None if it does not.
        released: Ids of tokens that may leave, in order; whoever sends them takes them out.
        outcome: How the answer ended, once it has.
        withheld: Tokens that will never leave, those included that were sampled during the last check.
    """

    plan: Plan
    account: Account
    end_token_ids: frozenset[int]
    decode: Callable[[Sequence[int]], str] | None = None
    released: list[int] = field(default_factory=list)
    outcome: Outcome | None = None
    withheld: int = 0
    _writer: AnswerWriter = field(init=False)
    _flow: Flow | None = None
    _command: Command | Outcome | None = None
    _tokens: deque[int] = field(default_factory=deque)
    _taken: int = 0
    _ended: Literal["stop", "length"] | None = None
    _known: tuple[int, Score] | None = None

    def __post_init__(self) -> None:
        account, decode = self.account, self.decode or (lambda token_ids: "")
        self._writer = AnswerWriter(account.prompt, account.guard.refusal, decode, account)

    def begin(self, inside: Mapping[int, Score | Exception]) -> None:
        """Start the flow; `inside` has what the checks inside the prefill replied, a depth.

        The flow may ask for the whole way to the next check: tokens come one by one as it is.
        """
        self.plan = replace(self.plan, inside=inside, chunk=None)
        self._flow = guarded(self.plan)
        self._command = step(self._flow)

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
    def finished(self) -> Answer:
        """The answer that has ended."""
        assert self.outcome is not None
        return self._writer.answer(self.outcome)

    @property
    def error(self) -> str | None:
        """Kind of the failure that halted the answer, or None."""
        if self._writer.failure is not None:
            return type(self._writer.failure).__name__
        return self.account.checks[-1].get("error") if self.halted else None

    @property
    def due(self) -> int | None:
        """The depth at which a check is waited for, or None."""
        return self._command.depth if isinstance(self._command, Check) else None

    @property
    def reach(self) -> int:
        """Up to which depth may be decoded before another check: where the check stands that comes after the due one.

        While a check is due whose score decides where the next one stands, it is the depth of the due one.
        """
        command, plan = self._command, self.plan
        if isinstance(command, Decode):
            return plan.prefill + self._taken + command.n
        if not isinstance(command, Check) or not getattr(plan.schedule, "fixed", False):
            return plan.prefill + self._taken
        generated = max(command.depth - plan.prefill, 0)
        return plan.prefill + min(next_check(plan.schedule, generated, ()), plan.max_new_tokens)

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
            self.account.broken(outcome)

    def _advance(self) -> None:
        """Carry out commands until one has to wait for the engine."""
        while not self.over:
            command = self._command
            if isinstance(command, Decode) and (self._tokens or self._ended):
                self._send(self._decoded(command.n))
            elif isinstance(command, Check) and self._known is not None and self._known[0] == command.depth:
                # an end of turn alone after a check: the same state, the same reading, for which nobody is asked again
                self._send(replace(self._known[1], stages=()))
            elif command is None or isinstance(command, Decode | Check):
                return
            else:
                self._send(self._writer.write(command))
                for event in self._writer.take():
                    if isinstance(event, Released):
                        self.released += event.token_ids
                    elif isinstance(event, Halted):
                        self.withheld = event.withheld + len(self._tokens)

    def _decoded(self, n: int) -> Decoded:
        """Up to `n` tokens of those that wait, and the end if they are the last."""
        taken = tuple(self._tokens.popleft() for _ in range(min(n, len(self._tokens))))
        self._taken += len(taken)
        if self._tokens or self._ended is None:
            return Decoded(taken)
        ends = int(bool(taken) and taken[-1] in self.end_token_ids)
        return Decoded(taken, self._ended, ends)

    def _send(self, reply: Reply) -> None:
        assert self._flow is not None
        self._command = step(self._flow, reply)
        if isinstance(self._command, Outcome):
            self.outcome = self._command
