"""Decide at which depths an answer is checked."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import ClassVar, Protocol

from anydepth.errors import ConfigError


class Schedule(Protocol):
    """Chooses the next scheduled check; depth 0, the end of a prefill and the last window are checked regardless.

    A schedule that does not look at the scores says so with a class attribute `fixed = True`: a finished answer can
    then be read at all its depths at once.
    """

    def next_after(self, generated: int, scores: Sequence[float]) -> int:
        """Number of generated tokens at the next check, above `generated`, given the scores so far (oldest first)."""
        ...


def _positive(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value!r}; it counts tokens and must be a whole number of at least 1")
    return value


@dataclass(frozen=True, slots=True)
class Every:
    """Check every `interval` tokens (paper, section 4: 25), more often at the start.

    With `doubling`, the checks before the first interval fall at 1, 2, 4, 8, 16: under `hold` the first token then
    leaves one decode step and one check later than unguarded, not a whole interval later.
    """

    fixed: ClassVar[bool] = True

    interval: int = 25
    doubling: bool = True

    def __post_init__(self) -> None:
        _positive("interval", self.interval)

    def next_after(self, generated: int, scores: Sequence[float]) -> int:
        """Number of generated tokens at the next check."""
        if self.doubling and generated < self.interval:
            return min(1 << generated.bit_length(), self.interval)
        return (generated // self.interval + 1) * self.interval


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Check densely while the score is high or rising, sparsely while it is calm.

    The gap to the next check moves between `closest` and `widest` tokens: after a score of at least `alert`, or one
    that rose by `rise` or more, it is `closest`; after each calm check it doubles.
    """

    fixed: ClassVar[bool] = False

    closest: int = 5
    widest: int = 50
    alert: float = 0.3
    rise: float = 0.15

    def __post_init__(self) -> None:
        _positive("closest", self.closest)
        if _positive("widest", self.widest) < self.closest:
            raise ConfigError(f"widest is {self.widest}, below closest ({self.closest}); give a larger widest")
        for name, value in (("alert", self.alert), ("rise", self.rise)):
            if not isinstance(value, Real) or not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value!r}; it is compared with scores and must lie in [0, 1]")

    def next_after(self, generated: int, scores: Sequence[float]) -> int:
        """Number of generated tokens at the next check."""
        gap = 1 if generated == 0 else self.closest
        if generated:
            for before, score in pairwise(scores):
                calm = score < self.alert and score - before < self.rise
                gap = min(gap * 2, self.widest) if calm else self.closest
        return generated + gap


@dataclass(frozen=True, slots=True)
class Listed:
    """Check at the given numbers of generated tokens, then at the end only."""

    fixed: ClassVar[bool] = True

    depths: tuple[int, ...]

    def next_after(self, generated: int, scores: Sequence[float]) -> int:
        """Number of generated tokens at the next check; beyond any answer once the list is done."""
        return min((depth for depth in self.depths if depth > generated), default=sys.maxsize)


def next_check(schedule: Schedule, generated: int, scores: Sequence[float]) -> int:
    """What `schedule` says; ConfigError if it does not go on, which would check one depth for ever."""
    following = schedule.next_after(generated, scores)
    if following <= generated:
        raise ConfigError(f"{schedule} gave {following} as the check after {generated} tokens; it must be above that")
    return following


def scheduled_depths(schedule: Schedule, length: int) -> list[int]:
    """Depths at which a finished answer of `length` tokens is checked: 0, every scheduled depth, and its end.

    For a schedule that looks at the scores these are its depths while it is alarmed, the densest ones.
    """
    depths = [0]
    while depths[-1] < length:
        alarming = [1.0] * (len(depths) + 1)
        depths.append(min(next_check(schedule, depths[-1], alarming), length))
    return depths
