"""Say what a policy does to one answer, of which perhaps only a stretch is harmful."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from anydepth.policy import Policy, statistic_at
from anydepth.probes.fitting.calibrate import Trail, first_halt


@dataclass(frozen=True, slots=True)
class StretchHalt:
    """What becomes of one answer.

    Attributes:
        peak: Largest statistic of the policy at the checks that have seen something of the stretch; of an answer that
            is harmful as a whole, or harmless, at all checks.
        before: Largest statistic at the checks before the stretch; -inf where there is none.
        first: Index of the check that halts, or None.
        early: Whether that check has seen nothing of the stretch: it halts what is harmless, which is no hit.
    """

    peak: float
    before: float
    first: int | None
    early: bool

    @property
    def halted(self) -> bool:
        """Whether the answer is halted for what its label is about."""
        return self.first is not None and not self.early


def stretch_halt(policy: Policy, trail: Trail) -> StretchHalt:
    """What `policy` does to the answer of `trail`, all of whose checks it sees, as in a guard."""
    values = statistic_at(policy, trail.depths, trail.scores)
    inside = [depth > trail.harm_begins for depth in trail.depths]
    first = first_halt(policy, trail.depths, trail.scores)
    return StretchHalt(
        _largest([value for value, seen in zip(values, inside, strict=True) if seen]),
        _largest([value for value, seen in zip(values, inside, strict=True) if not seen]),
        first,
        first is not None and not inside[first],
    )


def ends(trail: Trail) -> Trail:
    """The first and the last check of `trail` alone: what a guard may read of an answer that is given as a prefill."""
    places = (0, -1) if len(trail.depths) > 1 else (0,)
    depths = tuple(trail.depths[place] for place in places)
    return replace(trail, depths=depths, scores=tuple(trail.scores[place] for place in places))


def _largest(values: Sequence[float]) -> float:
    return max(values, default=-math.inf)
