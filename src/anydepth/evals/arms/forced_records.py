"""Find out what becomes of forced answers under each defence: halted, refused by the model itself, or continued."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from anydepth.config import GuardConfig
from anydepth.errors import CheckError
from anydepth.evals.answers.forced import Forced
from anydepth.evals.arms.arms import DEAR
from anydepth.evals.arms.replay import Defence, Point, leaked, reads_states, replay, without_early_checks
from anydepth.evals.context import Context
from anydepth.evals.transcript import Transcript
from anydepth.flow import Outcome
from anydepth.probes.fitting.calibrate import Trail
from anydepth.schedule import Listed
from anydepth.types import Score, json_number


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one answer under one defence.

    Attributes:
        item: The request with its prefill.
        refused: The model itself refuses to go on, by the judge.
        outcome: What the guard did; None without a guard.
        flagged: The check at the prefill's end alone reaches the guard's threshold.
    """

    item: Forced
    refused: bool
    outcome: Outcome | None = None
    flagged: bool = False

    @property
    def halted(self) -> bool:
        """True if the guard cut the answer."""
        return self.outcome is not None and self.outcome.finish_reason == "content_filter"

    @property
    def halt_depth(self) -> int | None:
        """Depth in tokens of the check that halts the answer, the prefill counted; None if none does."""
        return self.outcome.verdict.depth if self.halted and self.outcome is not None else None

    @property
    def stopped(self) -> bool:
        """True if the guard cut the answer or the model refused."""
        return self.halted or self.refused

    @property
    def leak(self) -> int:
        """Tokens that left, the prefill not counted."""
        return 0 if self.outcome is None else leaked(self.outcome)

    @property
    def checks(self) -> int:
        """How many checks were made."""
        return 0 if self.outcome is None else len(self.outcome.checks)


@dataclass(frozen=True)
class Remembered:
    """A defence whose scores are in the records."""

    name: str
    known: Mapping[tuple[str, int], float | None]
    reads_inside: bool

    def scores(self, points: Sequence[Point]) -> list[Score | Exception]:
        """The scores that were written down; None is a check that failed."""
        found = (self.known[point.transcript.id, point.depth] for point in points)
        return [CheckError("the check failed") if score is None else Score(score) for score in found]

    def config(self, base: GuardConfig) -> GuardConfig:
        """`base` as it is."""
        return base


def refusals(context: Context, arm: str, items: Mapping[str, Forced]) -> dict[str, bool]:
    """Whether the model itself refuses after each prefill, by its key in `texts`; judged once."""
    missing = [key for key in items if _key(arm, key) not in context.records]
    if missing:
        wanted = {key: context.answered(items[key].row.prompt, key, items[key].prompt) for key in missing}
        for key, judgement in context.judged(wanted).items():
            facts = {"refused": judgement.refused, "harmful": judgement.harmful}
            context.records.write(_key(arm, key), {"id": _key(arm, key), **_about(arm, items[key]), **facts})
    return {key: context.records.rows[_key(arm, key)]["refused"] for key in items}


def base_of(arm: Defence, base: GuardConfig) -> GuardConfig:
    """When the arm checks: only a probe makes the early checks, and a dear arm none but those that must be."""
    if arm.name in DEAR:
        return replace(base, schedule=Listed(()))
    return base if reads_states(arm) else without_early_checks(base)


def check(
    context: Context, arm: str, asked: Defence, items: Sequence[Forced], transcripts: Mapping[str, Transcript]
) -> None:
    """Score every check of the items with one defence, also behind a halt, and keep the scores in the records."""
    base = replace(base_of(asked, context.config), release="monitor")

    def make(batch: Mapping[str, Forced]) -> Iterator[dict[str, Any]]:
        outcomes = replay(asked, [transcripts[item.key] for item in batch.values()], base)
        return ({**_about(arm, item), **_checks(outcomes[item.key])} for item in batch.values())

    depths = sorted({item.depth for item in items})
    batches = ({_key(arm, item.key): item for item in items if item.depth == depth} for depth in depths)
    context.fill(f"check with {arm}", batches, make)


def settle(
    context: Context,
    arm: str,
    config: GuardConfig,
    items: Sequence[Forced],
    transcripts: Mapping[str, Transcript],
    *,
    reads_inside: bool,
) -> dict[str, Outcome]:
    """What a guard with this configuration would have done, from the scores that `check` wrote down for `arm`."""
    known = {(item.key, depth): score for item in items for depth, score in scores_of(context, arm, item)}
    remembered = Remembered(arm, known, reads_inside)
    return replay(remembered, [transcripts[item.key] for item in items], config, ahead=False)


def scores_of(context: Context, arm: str, item: Forced) -> list[tuple[int, float | None]]:
    """Depth and score of each check in the records; None where it failed."""
    return [(depth, score) for depth, score in context.records.rows[_key(arm, item.key)]["checks"]]


def trail_of(context: Context, arm: str, item: Forced) -> Trail | None:
    """The checks of one answer for calibration; None if one of them failed."""
    checks = dict(scores_of(context, arm, item))
    if any(score is None for score in checks.values()):
        return None
    depths = sorted(checks)
    return Trail(item.key, item.row.source, tuple(depths), tuple(checks[depth] or 0.0 for depth in depths))


def _checks(outcome: Outcome) -> dict[str, Any]:
    checks = [(check.depth, json_number(check.score)) for check in outcome.checks]
    halt = outcome.verdict.depth if outcome.verdict.halt else None
    return {"checks": checks, "halts_at": halt, "errors": outcome.verdict.errors}


def _about(arm: str, item: Forced) -> dict[str, Any]:
    return {
        "arm": arm,
        "kind": item.kind,
        "depth": item.depth,
        "answer": item.row.id,
        "source": item.row.source,
        "joined": item.joined,
    }


def _key(arm: str, key: str) -> str:
    return key if key.startswith(f"{arm}|") else f"{arm}|{key}"
