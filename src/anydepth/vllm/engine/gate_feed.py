"""Gather the readings of one proposed tool call, and judge it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from anydepth.config import GuardConfig
from anydepth.gate import BegunGate
from anydepth.gate_report import gate_report
from anydepth.guard_report import without_cost
from anydepth.templates.proposed_call import CallPrompt
from anydepth.types import GateVerdict, Score


@dataclass(slots=True)
class GateFeed:
    """Stands in the place of a `FlowFeed`: the checks are made as a prefill's are, then the request is over.

    Nothing is decoded, and nothing leaves but the verdict.

    Attributes:
        config: The guard's options.
        call: The call.
        control: Whether the reading before it is asked for.
        model: Name of the model that clients use.
        store: Writes the audit record of the verdict; raises where it cannot, and then there is no verdict.
        verdict: What was judged; None before that, and where it could not be stored.
        failure: Why it could not be stored, or None.
        released: Ids of tokens that may leave: none, ever.
    """

    config: GuardConfig
    call: CallPrompt
    control: bool
    model: str
    store: Callable[[GateVerdict], None]
    verdict: GateVerdict | None = None
    failure: Exception | None = None
    released: list[int] = field(default_factory=list)
    withheld: int = 0
    end_token_ids: frozenset[int] = frozenset()
    begun: bool = False
    _found: dict[int, Score | Exception] = field(default_factory=dict)

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths that are read, rising."""
        end = self.call.prompt.prefill
        return (self.call.before, end) if self.control else (end,)

    @property
    def due(self) -> int | None:
        """The depth at which a check is waited for, or None."""
        return next((depth for depth in self.depths if depth not in self._found), None) if self.begun else None

    @property
    def reach(self) -> int:
        """Up to which depth may be decoded: no token at all."""
        return self.call.prompt.prefill

    @property
    def over(self) -> bool:
        """True once the call was judged, or cannot be."""
        return self.verdict is not None or self.failure is not None

    @property
    def halted(self) -> bool:
        """True once it is over: vLLM's request is then ended as one that the guard cuts, and never goes on."""
        return self.over

    def begin(self, inside: Mapping[int, Score | Exception]) -> None:
        """Take in what the checks inside the turn replied, a depth."""
        self.begun = True
        self._found |= {depth: reply for depth, reply in inside.items() if depth in self.depths}
        self._judge()

    def answer(self, depth: int, reply: Score | Exception) -> None:
        """Bring the result of the check at `depth`."""
        if depth == self.due:
            self._found[depth] = reply
            self._judge()

    def push(self, token_ids: list[int], ended: str | None = None) -> None:
        """Take in nothing: a token that was sampled all the same goes nowhere."""

    def broken(self, outcome: str) -> None:
        """Leave no record: a call that was not judged has none."""

    def report(self, detector: str) -> dict[str, Any]:
        """What the front is told, once it is over."""
        if self.verdict is None:
            told = {"halted": True, "would_halt": True, "reason": "error", "error": type(self.failure).__name__}
            return {**told, "detector": detector}
        found = gate_report(self.verdict, self.config)
        told = {name: found["anydepth"][name] for name in ("halted", "would_halt", "reason")}
        record = {**told, "detector": detector, "model": self.model, "gate": found}
        if (stages := self.verdict.stages) is not None:
            record["stage_sums"] = without_cost(stages)
        return record

    def _judge(self) -> None:
        """Judge the call, once every depth has been read."""
        if self.due is not None or self.over:
            return
        readings = [self._found[depth] for depth in self.depths]
        begun = BegunGate(self.config, [self.call], [self.depths], [readings], "forks", self.control)
        try:
            (found,) = begun.verdicts()
            self.store(found)
        except Exception as error:
            self.failure = error
        else:
            self.verdict = found
