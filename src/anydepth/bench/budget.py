"""Spend a time budget on measurements, each as thoroughly as its share allows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

_SLACK = 1.5
"""A measurement that can end early does so after this many times what it was allowed."""


@dataclass(frozen=True, slots=True)
class Level:
    """How thoroughly something is measured.

    Attributes:
        samples: Number of samples.
        tokens: Tokens decoded per sample.
    """

    samples: int
    tokens: int

    def __str__(self) -> str:
        """For people."""
        return f"{self.samples} x {self.tokens} tokens"


class Measurement(Protocol):
    """One thing to measure.

    Attributes:
        name: What it is, for people.
        levels: How thoroughly it may be measured, the dearest first.
    """

    name: str
    levels: Sequence[Level]

    def estimate(self, level: Level) -> float:
        """Seconds that it will take, by what is known now."""
        ...

    def measure(self, level: Level, enough: Callable[[], bool]) -> Level:
        """Do it; it may stop after any sample once `enough` says so. Returns what was done."""
        ...


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the measuring stands before one measurement.

    Attributes:
        name: What is measured next.
        number: Its number, from 1.
        total: How many there are.
        left: Seconds that all that is left will take, at most those left of the budget.
    """

    name: str
    number: int
    total: int
    left: float


def expected(measurements: Sequence[Measurement], budget: float) -> float:
    """Seconds that the measurements will take within `budget`."""
    return min(budget, sum(each.estimate(each.levels[0]) for each in measurements))


def spend(
    measurements: Sequence[Measurement],
    budget: float,
    clock: Callable[[], float],
    told: Callable[[Standing], None],
) -> list[str]:
    """Make the measurements in their order within `budget` seconds, and say what was cut.

    Before each one the budget is divided anew: what does not fit at its cheapest level is left out, the dearest first,
    and what remains is shared out by how much each would gain from it. Estimates are corrected by how the ones before
    came out.

    Args:
        measurements: What is to be measured.
        budget: Seconds that all of it may take.
        clock: Tells the time in seconds.
        told: Called before each measurement that is made.

    Returns:
        One sentence per measurement that was left out or made less thoroughly than its first level.
    """
    begun = clock()
    cuts: list[str] = []
    estimated = took = 0.0
    for place, each in enumerate(measurements):
        pace = max(0.5, took / estimated) if estimated else 1.0
        left = budget - (clock() - begun)
        waiting = measurements[place:]
        allowed = _share(waiting, left / pace)
        if allowed is None:
            cheapest, whose = each.estimate(each.levels[-1]) * pace, "left"
            if cheapest <= left:
                whose += " for this and others, which take less"
            cuts.append(f"{each.name}: left out, it takes about {about(cheapest)} and there were {about(left)} {whose}")
            continue
        told(Standing(each.name, place + 1, len(measurements), expected(waiting, left / pace) * pace))
        level = next((level for level in each.levels if each.estimate(level) <= allowed), each.levels[-1])
        guess, start, limit = each.estimate(level), clock(), _SLACK * allowed * pace
        done = each.measure(level, lambda start=start, limit=limit: clock() - start > limit)
        estimated, took = estimated + guess, took + clock() - start
        if done != each.levels[0]:
            cuts.append(f"{each.name}: {done} instead of {each.levels[0]}")
    return cuts


def _share(waiting: Sequence[Measurement], left: float) -> float | None:
    """Seconds that the first of `waiting` may take of those left, None if it has to be left out."""
    floors = [each.estimate(each.levels[-1]) for each in waiting]
    kept = set(range(len(waiting)))
    while kept and sum(floors[place] for place in kept) > left:
        kept.remove(max(kept, key=lambda place: (floors[place], place)))
    if 0 not in kept:
        return None
    gains = {place: waiting[place].estimate(waiting[place].levels[0]) - floors[place] for place in kept}
    spare, wanted = left - sum(floors[place] for place in kept), sum(gains.values())
    if spare >= wanted:
        return waiting[0].estimate(waiting[0].levels[0])
    return floors[0] + gains[0] * spare / wanted


def about(seconds: float) -> str:
    """A time for people: `0.3 s`, `40 s`, `3 min`."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.2g} s"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
