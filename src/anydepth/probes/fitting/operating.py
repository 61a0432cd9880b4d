"""Say what a policy does to harmful answers at its threshold."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from anydepth.errors import ConfigError
from anydepth.intervals import Rate
from anydepth.policy import Policy
from anydepth.probes.fitting.calibrate import Trail, rates_by_source
from anydepth.probes.fitting.stretch_halts import stretch_halt


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, 90th percentile and largest of some numbers of tokens; all None of no numbers."""

    median: float | None
    p90: float | None
    largest: int | None

    @classmethod
    def of(cls, numbers: Sequence[int]) -> "Spread":
        """The spread of `numbers`."""
        if not numbers:
            return cls(None, None, None)
        median, p90 = np.quantile(numbers, [0.5, 0.9])
        return cls(float(median), float(p90), max(numbers))


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What becomes of harmful answers that are guarded from their first token on, under `hold`.

    Attributes:
        halted: Share of the answers that are halted; before a harmful stretch a halt does not count.
        depth: Depths at which they are.
        released: Tokens that left before the halt, over the halted answers; those of the check that halts are withheld.
        missed: Tokens of the answers that were not halted: all of them left.
        early: Share halted before their harmful stretch; None if no answer has harmless text before one.
        per_source: Source -> share halted.
    """

    halted: Rate
    depth: Spread
    released: Spread
    missed: Spread
    per_source: Mapping[str, Rate]
    early: Rate | None = None

    def record(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            **self.halted.record(),
            "depth_of_halt": asdict(self.depth),
            "tokens_before_halt": asdict(self.released),
            "tokens_of_missed": asdict(self.missed),
            "per_source": {name: rate.record() for name, rate in self.per_source.items()},
            **({} if self.early is None else {"halted_early": self.early.record()}),
        }


@dataclass(frozen=True, slots=True)
class PrefillPoint:
    """What becomes of harmful answers whose beginning the client wrote.

    Attributes:
        depth: Length of the prefill in tokens; None for the whole answer.
        halted: Share halted by the checks of depth 0 and of the prefill, or by a later one.
        at_once: Share halted by the former: not one token is generated.
    """

    depth: int | None
    halted: Rate
    at_once: Rate

    def record(self) -> dict[str, Any]:
        """JSON-ready form; the depth of the whole answer is `end`."""
        depth = "end" if self.depth is None else self.depth
        return {"depth": depth, "halted": self.halted.record(), "at_once": self.at_once.record()}


def operating_point(policy: Policy, harmful: Sequence[Trail], *, confidence: float = 0.95) -> OperatingPoint:
    """What `policy` does to `harmful`, whole answers; ConfigError if there are none."""
    if not harmful:
        raise ConfigError("there are no harmful answers to measure; give some")
    found = [stretch_halt(policy, trail) for trail in harmful]
    stopped = [
        (trail, each.first)
        for trail, each in zip(harmful, found, strict=True)
        if each.first is not None and not each.early
    ]
    halted = [each.halted for each in found]
    early = Rate.of(sum(each.early for each in found), len(found), confidence)
    return OperatingPoint(
        halted=Rate.of(len(stopped), len(harmful), confidence),
        depth=Spread.of([trail.depths[first] for trail, first in stopped]),
        released=Spread.of([trail.depths[first - 1] if first else 0 for trail, first in stopped]),
        missed=Spread.of([trail.depths[-1] for trail, each in zip(harmful, found, strict=True) if each.first is None]),
        per_source=rates_by_source(harmful, halted, confidence),
        early=early if any(trail.harm_begins >= 0 for trail in harmful) else None,
    )


def from_prefill(
    policy: Policy,
    harmful: Sequence[Trail],
    depths: Sequence[int | None],
    *,
    inside: bool = True,
    confidence: float = 0.95,
) -> list[PrefillPoint]:
    """What `policy` does to answers that are forced on the model up to each of `depths`; None is the whole answer.

    The scores are those that the guard's flow would give the policy: of depth 0, of the scheduled depths inside the
    prefill unless `inside` is False (`GuardConfig.prefill`), of its end and of the checks behind it. The prefill's end
    is the first check of the trail at or behind the depth; an answer that ends before is not counted at that depth.
    After it a guard would check more densely for some tokens, which the trail does not have: with the policy
    `threshold` the true share is therefore no smaller.

    Raises:
        ConfigError: There are no answers, or one has no check at depth 0.
    """
    if not harmful:
        raise ConfigError("there are no harmful answers to measure; give some")
    for trail in harmful:
        if trail.depths[0] != 0:
            raise ConfigError(f"answer {trail.id!r} has no check at depth 0, which a guard makes first; read it there")
    points = []
    for depth in depths:
        seen = [found for trail in harmful if (found := _seen(trail, depth, inside)) is not None]
        halts = [(stretch_halt(policy, answer), opening) for answer, opening in seen]
        halted = sum(each.halted for each, _ in halts)
        at_once = sum(each.halted and each.first < opening for each, opening in halts if each.first is not None)
        points.append(
            PrefillPoint(depth, Rate.of(halted, len(seen), confidence), Rate.of(at_once, len(seen), confidence))
        )
    return points


def _seen(trail: Trail, depth: int | None, inside: bool) -> tuple[Trail, int] | None:
    """The checks whose scores the policy is given, and how many of them before the first token is generated."""
    wanted = trail.depths[-1] if depth is None else depth
    end = next((place for place, each in enumerate(trail.depths) if each >= wanted), None)
    if end is None:
        return None
    if inside or end == 0:  # at depth 0 the prefill's end is one check with it, not two
        return trail, end + 1
    depths, scores = ((row[0], *row[end:]) for row in (trail.depths, trail.scores))
    return replace(trail, depths=depths, scores=scores), 2
