"""Tell halts at depth 0, where a check sees the request alone, from those by a check of the answer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from anydepth.config import GuardConfig
from anydepth.evals import estimates
from anydepth.evals.arms.answer_records import Trace
from anydepth.evals.figure import Figure, Group
from anydepth.policy import statistic_at

AT_START, BY_ANSWER = " at depth 0", " by the answer"
"""What the name of a figure of halts ends with, where it counts a part of them."""

PLACES: Mapping[str, Callable[[int | None], bool]] = {
    "": lambda depth: depth is not None,
    AT_START: lambda depth: depth == 0,
    BY_ANSWER: lambda depth: depth is not None and depth > 0,
}
"""End of a figure's name -> whether it counts an answer that is halted at that depth (None: not halted)."""

LATE = 25
"""From this depth on a check sees more than the first words of an answer."""

FROM_LATE = f" from depth {LATE}"

CAPTION = (
    "At depth 0 a check sees the request alone. Halted by the answer means only that depth 0 did not halt and a later "
    "check did; cases whose request says nothing of the answer show what is read in it. The two parts add up to all "
    "halts."
)


def parts_of(name: str) -> tuple[str, ...]:
    """The names of the figures that `halts` makes under `name`: all halts, those at depth 0, those by the answer."""
    return tuple(f"{name}{end}" for end in PLACES)


def halts(name: str, depths: Sequence[int | None], group: Group, **facts: Any) -> Iterator[Figure]:
    """Share of answers that are halted, at depth 0, and by a check of the answer: three figures over all answers.

    Args:
        name: Name of the first figure; those of its parts begin with it.
        depths: Depth in tokens of the check that halts each answer; None where none does.
        group: What the figures are about.
        **facts: `judge` and `note` of the figures.
    """
    for end, holds in PLACES.items():
        yield estimates.share(f"{name}{end}", [holds(depth) for depth in depths], group, **facts)


def halted_late(config: GuardConfig, trace: Trace, depth: int = LATE) -> bool:
    """Whether the checks from `depth` on, on their own, halt the answer.

    The policy of `config` gets the scores of those checks only. The trace must have them all, so it must not end at an
    earlier halt. A failed check halts unless `config.on_error` is `open`.
    """
    late = [(at, score) for at, score, _ in trace.checks if at >= depth]
    if config.on_error == "closed" and any(score is None for _, score in late):
        return True
    scores = {at: score for at, score in late if score is not None}  # of two checks at one depth the last one counts
    values = statistic_at(config.policy, list(scores), list(scores.values()))
    return any(not value < config.policy.threshold for value in values)
