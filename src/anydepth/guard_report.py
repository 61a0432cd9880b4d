"""Say how the guard ended an answer, in the words that clients read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from anydepth.audit.answer import check_record, number
from anydepth.config import GuardConfig
from anydepth.policy import policy_record
from anydepth.types import Answer

_OPTIONAL = ("timeline", "usage", "stages")


@dataclass(frozen=True, slots=True)
class GuardReport:
    """The `anydepth` object of an answer. What is not known is null.

    Attributes:
        halted: True if the guard cut the answer.
        would_halt: True if the policy tripped; differs from `halted` under `monitor` only.
        depth: Depth of the deciding check, or of the highest score.
        score: Its score; null if the check failed.
        reason: `policy`, `error` or `clear`.
        policy: The policy's name and options.
        release: The release mode.
        checks: Number of checks.
        failed_checks: How many of them failed; a record that could not be stored counts as one.
        released_tokens: Tokens that left.
        withheld_tokens: Tokens that were generated and never left.
        leak_tokens: Tokens that had left when the answer was halted.
        timeline: Every check, where the client may see them.
        usage: What the answer and its checks used, as an API says, without the cost; see `Answer.usage`.
        stages: What each stage of a cascade did and used, without the cost, where the client may see the checks; see
            `Answer.stages`.
    """

    halted: bool
    would_halt: bool
    depth: int | None = None
    score: float | None = None
    reason: str = "clear"
    policy: dict[str, Any] | None = None
    release: str | None = None
    checks: int | None = None
    failed_checks: int | None = None
    released_tokens: int | None = None
    withheld_tokens: int | None = None
    leak_tokens: int | None = None
    timeline: list[dict[str, Any]] | None = None
    usage: dict[str, Any] | None = None
    stages: dict[str, Any] | None = None

    @classmethod
    def of(cls, answer: Answer, guard: GuardConfig, *, tell: bool = False) -> "GuardReport":
        """The report of an answer that was guarded as `guard` says; `tell` adds every check."""
        verdict = answer.verdict
        return cls(
            halted=answer.halted,
            would_halt=verdict.halt,
            depth=verdict.depth,
            score=number(verdict.score),
            reason=verdict.reason,
            policy=policy_record(guard.policy),
            release=guard.release,
            checks=len(answer.checks),
            failed_checks=verdict.errors,
            released_tokens=len(answer.token_ids),
            withheld_tokens=max(0, answer.generated_tokens - len(answer.token_ids)),
            leak_tokens=answer.leak,
            timeline=[check_record(check) for check in answer.checks] if tell else None,
            usage=None if answer.usage is None else without_cost(answer.usage),
            stages=without_cost(stages) if tell and (stages := answer.stages) is not None else None,
        )

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "GuardReport":
        """The report that a record has; what else the record has is left out."""
        return cls(**{each.name: record[each.name] for each in fields(cls) if each.name in record})

    def record(self) -> dict[str, Any]:
        """The report as JSON; without a timeline, a usage or stages if there are none."""
        record = asdict(self)
        return {name: value for name, value in record.items() if value is not None or name not in _OPTIONAL}


def without_cost(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Sums by purpose or stage as a client may see them."""
    return {purpose: {name: sums[name] for name in sums if name != "cost"} for purpose, sums in usage.items()}
