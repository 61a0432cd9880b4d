"""Set a policy's threshold by the rate of benign answers that it halts."""

import copy
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from itertools import pairwise
from numbers import Real
from typing import Any

from anydepth.detectors import LinearProbe
from anydepth.errors import ConfigError
from anydepth.intervals import Interval, Rate, answers_needed, check_share, percent, upper_bound
from anydepth.policy import Cusum, Policy, policy_record, statistic_at
from anydepth.probes.fitting.contract import allowed_halts, guaranteed_halts

_FIRST_BUCKETS = (0, 25, 50, 100)


@dataclass(frozen=True, slots=True)
class Trail:
    """The checks of one answer.

    Attributes:
        id: The answer's own id, for messages.
        source: Where the answer is from.
        depths: Depth of each check, rising.
        scores: Score of each check, in [0, 1].
        harm_begins: Number of tokens before the stretch that is harmful, in a harmful answer whose beginning is not; -1
            in any other. Checks up to this depth have seen nothing of the stretch.
    """

    id: str
    source: str
    depths: tuple[int, ...]
    scores: tuple[float, ...]
    harm_begins: int = -1

    def __post_init__(self) -> None:
        if not self.depths or len(self.depths) != len(self.scores):
            raise ConfigError(
                f"answer {self.id!r} has {len(self.depths)} depths and {len(self.scores)} scores; give one score a "
                "depth, and at least one"
            )
        if self.depths[0] < 0 or any(later <= depth for depth, later in pairwise(self.depths)):
            raise ConfigError(f"answer {self.id!r} has the depths {self.depths}; they must rise, from 0 on")
        for score in self.scores:
            if not isinstance(score, Real) or not 0 <= score <= 1:  # NaN is in no range
                raise ConfigError(f"answer {self.id!r} has the score {score!r}; leave out answers with failed checks")
        # of numpy, float32 would be compared with the threshold in float32, where neighbours are equal
        object.__setattr__(self, "depths", tuple(map(int, self.depths)))
        object.__setattr__(self, "scores", tuple(map(float, self.scores)))


@dataclass(frozen=True, slots=True)
class DepthBucket:
    """What benign answers do at one range of depths.

    Attributes:
        low: First depth of the range.
        high: Last one.
        answers: Answers with a check in the range.
        halted: Answers that are halted there, none before.
        checks: Checks in the range.
        above: Those at which the policy's statistic reaches the threshold.
    """

    low: int
    high: int
    answers: int
    halted: int
    checks: int
    above: int

    def record(self) -> dict[str, Any]:
        """JSON-ready form, with both rates."""
        return {
            "depths": [self.low, self.high],
            "answers": self.answers,
            "halted": self.halted,
            "halted_rate": self.halted / self.answers,
            "checks": self.checks,
            "above": self.above,
            "above_rate": self.above / self.checks,
        }


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold and the evidence for it. All rates are of whole answers.

    Attributes:
        policy: The policy with its threshold set.
        target: False-positive rate that the threshold was set for.
        achieved: False-positive rate on the answers that it was set on.
        answers: Their number.
        halted: How many of them are halted.
        interval: Clopper-Pearson interval of the rate, two-sided.
        bound: Clopper-Pearson upper bound of the rate, one-sided.
        confidence: Confidence of both.
        guarantee: True if the threshold was set so that `bound` is at most the target.
        per_source: Source -> its rate.
        per_depth: Where the answers are halted.
        data: What the answers were, for people.
    """

    policy: Policy
    target: float
    achieved: float
    answers: int
    halted: int
    interval: Interval
    bound: float
    confidence: float
    guarantee: bool
    per_source: Mapping[str, Rate]
    per_depth: tuple[DepthBucket, ...]
    data: str

    @property
    def verified(self) -> bool:
        """True if these answers show, with `confidence`, that the rate is at most the target."""
        return self.bound <= self.target

    @property
    def note(self) -> str:
        """What the figures allow to say, as one sentence."""
        sure = f"with {percent(self.confidence)} confidence the false-positive rate is at most {percent(self.bound)}"
        if self.verified:
            return f"{sure}, within the target of {percent(self.target)}"
        needed = answers_needed(self.target, self.confidence)
        if allowed_halts(self.target, self.answers) == 0:
            return (
                f"the target of {percent(self.target)} cannot be verified with {self.answers} answers, at least "
                f"{needed} are needed: {sure}; the threshold lies above every benign answer seen"
            )
        return f"the target of {percent(self.target)} is met on these answers, not guaranteed for others: {sure}"

    def record(self) -> dict[str, Any]:
        """JSON-ready form: what stands in a probe's card under `calibration`."""
        return {
            "target": self.target,
            "achieved": self.achieved,
            "answers": self.answers,
            "halted": self.halted,
            "interval": self.interval.record(),
            "upper_bound": self.bound,
            "confidence": self.confidence,
            "guarantee": self.guarantee,
            "verified": self.verified,
            "note": self.note,
            "per_source": {name: rate.record() for name, rate in self.per_source.items()},
            "per_depth": [bucket.record() for bucket in self.per_depth],
            "data": self.data,
        }


def peak(policy: Policy, trail: Trail) -> float:
    """The largest value of the policy's statistic over one answer, which halts if that reaches the threshold."""
    return max(statistic_at(policy, trail.depths, trail.scores))


def calibrate(
    policy: Policy,
    benign: Sequence[Trail],
    *,
    target: float = 0.005,
    confidence: float = 0.95,
    guarantee: bool = False,
    data: str,
) -> Calibration:
    """Set the threshold of `policy`: the smallest with which at most `target` of the benign answers halt.

    The kind of the policy and its other options stay. The interval stands although the threshold was set on the same
    answers: above the k-th largest of n peaks lies a share that has the very distribution which the Clopper-Pearson
    bounds are the quantiles of. It does not stand for a policy or a probe that was chosen on these answers.

    Args:
        policy: Kind and options; its threshold does not matter.
        benign: Answers that the probe never saw, each one time.
        target: False-positive rate of whole answers.
        confidence: Confidence of the bounds.
        guarantee: Set the threshold so that the one-sided upper bound, not the rate seen, is at most the target; the
            thresholds are tested from the strictest down, see `guaranteed_halts`.
        data: What the answers are, for the record.

    Raises:
        ConfigError: There are no answers, too few for a guarantee, one is given twice, an option has a value it cannot
            have, or the threshold would have to be one that the policy cannot have (benign answers that score 1).
    """
    check_share("target", target)
    check_share("confidence", confidence)
    if not benign:
        raise ConfigError("there are no benign answers to calibrate on; give some")
    if len(set(benign)) < len(benign):
        again = next(trail for trail, count in Counter(benign).items() if count > 1)
        raise ConfigError(
            f"benign answer {again.id!r} of {again.source!r} is given more than once ({len(benign)} answers, "
            f"{len(set(benign))} different ones); as evidence an answer counts once, give each one time"
        )
    allowed = guaranteed_halts(target, len(benign), confidence) if guarantee else allowed_halts(target, len(benign))
    peaks = [peak(policy, trail) for trail in benign]
    order = sorted(range(len(benign)), key=peaks.__getitem__, reverse=True)
    spared = order[allowed]  # the first answer that must not halt, and with it all that are not above it
    tuned = _with_threshold(policy, math.nextafter(peaks[spared], math.inf), benign, order[: allowed + 1], peaks)
    halted = [value >= tuned.threshold for value in peaks]
    whole = Rate.of(sum(halted), len(benign), confidence)
    return Calibration(
        policy=tuned,
        target=target,
        achieved=whole.rate,
        answers=whole.answers,
        halted=whole.halted,
        interval=whole.interval,
        bound=upper_bound(whole.halted, whole.answers, confidence),
        confidence=confidence,
        guarantee=guarantee,
        per_source=rates_by_source(benign, halted, confidence),
        per_depth=_by_depth(tuned, benign),
        data=data,
    )


def threshold_note(policy: Policy) -> str | None:
    """What to know of a threshold at an end of the range of scores, as one sentence; None of any other."""
    if policy.threshold <= sys.float_info.min:
        return (
            "the threshold lies directly above 0, because the benign answers score nothing at all: an answer is halted "
            "as soon as it scores anything"
        )
    if policy.threshold >= 1 and not isinstance(policy, Cusum):
        return (
            "the threshold is 1, because the benign answers score nearly 1: only an answer whose score rounds to 1 is "
            "halted, which is next to none"
        )
    return None


def recalibrated(probe: LinearProbe, calibration: Calibration, **more: Any) -> LinearProbe:
    """Return `probe` with the calibrated policy; `more` is added to the evidence in its card."""
    new = copy.copy(probe)
    new.card = replace(
        probe.card,
        policy=policy_record(calibration.policy),
        calibration={**calibration.record(), **more},
    )
    return new


def rates_by_source(trails: Sequence[Trail], halted: Sequence[bool], confidence: float) -> dict[str, Rate]:
    """Rate of each source, in order of their names."""
    counts: dict[str, list[bool]] = {}
    for trail, fell in zip(trails, halted, strict=True):
        counts.setdefault(trail.source, []).append(fell)
    return {name: Rate.of(sum(found), len(found), confidence) for name, found in sorted(counts.items())}


def first_halt(policy: Policy, depths: Sequence[int], scores: Sequence[float]) -> int | None:
    """Index of the check at which an answer halts that scores `scores` at `depths`, or None."""
    values = statistic_at(policy, depths, scores)
    reached = (place for place, value in enumerate(values) if value >= policy.threshold)
    return next(reached, None)


def _with_threshold(
    policy: Policy, threshold: float, benign: Sequence[Trail], top: Sequence[int], peaks: Sequence[float]
) -> Policy:
    if not is_dataclass(policy) or isinstance(policy, type):
        raise ConfigError(f"policy is {policy!r}; only a dataclass with a field `threshold` can be calibrated")
    try:
        return replace(policy, threshold=threshold)  # pyright: ignore[reportReturnType]
    except ConfigError as error:
        worst = [benign[place] for place in top if peaks[place] == peaks[top[-1]]]
        raise ConfigError(
            f"benign answer {worst[0].id!r} of {worst[0].source!r} reaches {peaks[top[-1]]:g} "
            f"({len(worst)} of the {len(top)} highest do) and must not halt, but no threshold of "
            f"{type(policy).__name__} lies above that; look at the label of that answer, allow a larger target, or use "
            "the policy cusum"
        ) from error


def _by_depth(policy: Policy, trails: Sequence[Trail]) -> tuple[DepthBucket, ...]:
    counts: dict[tuple[int, int], list[int]] = {}  # range of depths -> answers, halted, checks, above
    for trail in trails:
        buckets = [_bucket(depth) for depth in trail.depths]
        for bucket in set(buckets):
            counts.setdefault(bucket, [0, 0, 0, 0])[0] += 1
        first = first_halt(policy, trail.depths, trail.scores)
        if first is not None:
            counts[buckets[first]][1] += 1
        for bucket, value in zip(buckets, statistic_at(policy, trail.depths, trail.scores), strict=True):
            counts[bucket][2] += 1
            counts[bucket][3] += value >= policy.threshold
    return tuple(DepthBucket(low, high, *found) for (low, high), found in sorted(counts.items()))


def _bucket(depth: int) -> tuple[int, int]:
    """The range of depths that `depth` is in: 0, 1-25, 26-50, 51-100, then each twice as wide as the one before."""
    low = -1
    for high in _FIRST_BUCKETS:
        if depth <= high:
            return low + 1, high
        low = high
    while depth > 2 * low:
        low *= 2
    return low + 1, 2 * low
