"""Score with a cheap detector, and with others only where those before are unsure."""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from anydepth.backends.protocol import Capability, CheckPoint, Reader, Session
from anydepth.config import check_band
from anydepth.detectors.detector import Detector, require_usable
from anydepth.detectors.outside import Begun, OutsideDetector, followed
from anydepth.detectors.probe import LinearProbe
from anydepth.detectors.rethink import Rethink
from anydepth.errors import ConfigError, ProbeError
from anydepth.policy import Policy, Threshold, policy_from
from anydepth.stages import NOTHING, StageUse, stage_name, stages_of, with_stages
from anydepth.types import Score

_COMMAND = "`anydepth calibrate PROBE --model MODEL --benign FILE --cascade rethink`"

Band = tuple[float, float]
"""Scores in [low, high)."""


class Cascade:
    """Runs `second` at the checks that `first` scores in the band [low, high); outside of it the first score stands.

    All scores are on the scale of `first`. In the band a score is the mean of the first score and of the second one
    put into the band: (first + (1 - second)·low + second·high) / 2, see `blend`. The score

    - rises with both scores, and never leaves the band for a check in the band: one threshold, wherever it lies, means
      something for the whole cascade;
    - is below the middle of the band if the second score is 0, and not below it if that is 1: a threshold in the
      middle lets a second detector of yes or no decide alone.

    Checks with the same second score keep the order of the first. A look-ahead scores 0 or 1 only: without that order
    a calibration would find one threshold for all refusals in the band, and would have to let all of them pass as soon
    as they are too many on harmless answers.

    `third` is asked in the same way where the score of both is in a band of its own, `unsure`, inside of the first.
    By default that is the part of the band around the threshold that goes half the way to the nearer end of the band.
    With a threshold in the middle these are the checks at which a second detector of yes or no contradicts the first.

    Args:
        first: The cheap detector, usually a `LinearProbe`.
        second: The one that costs more, usually a `Rethink`.
        low: Score of the first below which the second is not run.
        high: Score of the first from which on the second is not run.
        policy: What the cascade was calibrated with; by default a `Threshold` in the middle of the band.
        third: One more, usually an `ExternalGuard`.
        unsure: Low and high of the scores of both at which the third is asked, within [low, high].

    Raises:
        ConfigError: There is no band, or it is not 0 ≤ low < high ≤ 1; or that of the third is not within it.
    """

    name = "cascade"

    def __init__(
        self,
        first: Detector,
        second: Detector,
        low: float | None = None,
        high: float | None = None,
        *,
        policy: Policy | None = None,
        third: Detector | None = None,
        unsure: Sequence[float] | None = None,
    ) -> None:
        if low is None or high is None:
            raise ConfigError(
                f"a cascade of {first.name} and {second.name} has no band (low is {low!r}, high is {high!r}); give "
                f"both, or calibrate the probe with {_COMMAND} and take Cascade.calibrated(probe)"
            )
        self.low, self.high = check_band(low, high)
        self.first, self.second, self.third = first, second, third
        self.needs = self._needs()
        self.policy: Policy = policy or Threshold((self.low + self.high) / 2)
        if third is None and unsure is not None:
            raise ConfigError(f"unsure is {unsure!r} and there is no third detector; give both, or neither")
        self.third_band: Band | None = None if third is None else self._third_band(unsure)

    @classmethod
    def calibrated(
        cls, probe: LinearProbe, *, third: Detector | None = None, unsure: Sequence[float] | None = None
    ) -> "Cascade":
        """The cascade that `probe` was calibrated for: second detector, band and policy are those of its card.

        A third detector is added to what was calibrated: it decides anew about the checks in its band, so that the
        rate of false alarms that was aimed at no longer holds exactly.

        Raises:
            ConfigError: The probe was not calibrated for a cascade, or the third detector has no band in it.
            ProbeError: What the card says of the cascade cannot be used.
        """
        record = probe.card.calibration.get("cascade")
        if record is None:
            raise ConfigError(f"the probe was not calibrated for a cascade; run {_COMMAND}, or give low and high")
        try:
            second, policy = Rethink.from_record(record["second"]), policy_from(record["policy"])
            found = cls(probe, second, record["low"], record["high"], policy=policy)
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise ProbeError(f"the card's cascade is not usable ({error!r}); run {_COMMAND} again") from error
        if third is None:
            return found
        return cls(probe, second, found.low, found.high, policy=policy, third=third, unsure=unsure)

    @property
    def parts(self) -> tuple[Detector, ...]:
        """The detectors, each of which makes checks of its own."""
        return (self.first, self.second) if self.third is None else (self.first, self.second, self.third)

    @property
    def later(self) -> tuple[tuple[Detector, Band], ...]:
        """The detectors after the first, each with the band of scores so far in which it is asked."""
        second = (self.second, (self.low, self.high))
        return (second,) if self.third is None or self.third_band is None else (second, (self.third, self.third_band))

    def bind(self, backend: Reader) -> None:
        """Bind all detectors; what one of them cannot do with this backend is an error now."""
        for part in self.parts:
            part.bind(backend)
        self.needs = self._needs()  # what a Rethink needs depends on the backend

    def unsure(self, first: float) -> bool:
        """True if a check with this first score is in the band: the second detector scores it as well."""
        return self.low <= first < self.high

    def blend(self, first: float, second: float) -> float:
        """The score of a check in the band, from both scores; at least `low` and at most `high`."""
        return _blend(first, second, (self.low, self.high))

    def check(self, session: Session, points: Sequence[CheckPoint]) -> list[Score]:
        """Score each point; the detail names the detector that was asked last, and the score before its own.

        Each score has the stages that were asked, with their time and what they used.
        """
        return [each.result() if isinstance(each, Future) else each for each in self.begin(session, points)]

    def begin(self, session: Session, points: Sequence[CheckPoint]) -> list[Begun]:
        """Make the checks; a future stands for one that the last detector makes outside, see `OutsideDetector`."""
        if not points:
            return []
        readings = [StagedReading(point) for point in points]
        _ask(self.first, session, readings, None)
        begun: dict[int, Future[Score]] = {}
        for detector, (low, high) in self.later:
            asked = [reading for reading in readings if low <= reading.value < high]
            if asked and detector is self.parts[-1] and isinstance(detector, OutsideDetector):
                begun = _begin(detector, session, asked, (low, high))
            elif asked:
                _ask(detector, session, asked, (low, high))
        return [begun.get(id(reading)) or reading.score() for reading in readings]

    def record(self) -> dict[str, Any]:
        """What `calibrated` reads of a card, but for the policy; ConfigError if the second is no `Rethink`."""
        if not isinstance(self.second, Rethink):
            raise ConfigError(f"the second detector is {self.second.name!r}; only a Rethink can be stored in a card")
        return {"second": self.second.record(), "low": self.low, "high": self.high}

    def _needs(self) -> frozenset[Capability]:
        return frozenset[Capability]().union(*(part.needs for part in self.parts))

    def _third_band(self, given: Sequence[float] | None) -> Band:
        if given is not None:
            low, high = check_band(*given)
            if not self.low <= low < high <= self.high:
                raise ConfigError(
                    f"unsure is {list(given)}, and the band of the cascade is [{self.low:g}, {self.high:g}]; the third "
                    "detector is asked where the first two were, so give a range within it"
                )
            return low, high
        threshold = self.policy.threshold
        reach = min(threshold - self.low, self.high - threshold) / 2
        if not reach > 0:
            raise ConfigError(
                f"the threshold of the policy is {threshold:g}, outside of the band [{self.low:g}, {self.high:g}] of "
                "the cascade; say with unsure where the third detector is asked"
            )
        return threshold - reach, threshold + reach


@dataclass(slots=True)
class StagedReading:
    """A check on its way through the stages of a cascade: its score so far, who was asked, and what that took."""

    point: CheckPoint
    value: float = 0.0
    who: str = ""
    detail: str | None = None
    stages: list[StageUse] = field(default_factory=list)

    def take(self, detector: Detector, reply: Score, band: Band | None, seconds: float) -> None:
        """Take the score of one more detector in; the first has no band."""
        name = stage_name(detector.name, self.stages)
        if band is None:
            self.value, self.who = reply.value, name
        else:
            before, last = self.value, self.stages[-1].name
            self.who = f"{name} {reply.value:.2f} after {last} {before:.2f}"
            self.value = _blend(before, reply.value, band)
        self.detail = reply.detail
        self.stages.append(StageUse(name, seconds, reply.spent or NOTHING))

    def score(self) -> Score:
        """The score as far as it has come."""
        detail = f"{self.who}: {self.detail}" if self.detail else self.who
        return Score(self.value, detail, stages=tuple(self.stages))

    def blame(self, detector: Detector, error: Exception, seconds: float) -> Exception:
        """`error`, which tells the stages until it was raised, with what the failed one used."""
        used = next((stage.spent for stage in stages_of(error)), NOTHING)
        return with_stages(error, [*self.stages, StageUse(stage_name(detector.name, self.stages), seconds, used)])


def _ask(detector: Detector, session: Session, readings: Sequence[StagedReading], band: Band | None) -> None:
    """Have a detector score some checks, here and now."""
    points, begin = [reading.point for reading in readings], time.perf_counter()
    try:
        replies = require_usable(detector.check(session, points), points, detector.name)
    except Exception as error:
        if len(readings) == 1:
            readings[0].blame(detector, error, time.perf_counter() - begin)
        raise
    seconds = (time.perf_counter() - begin) / len(readings)
    for reading, reply in zip(readings, replies, strict=True):
        reading.take(detector, reply, band, seconds)


def _begin(
    detector: OutsideDetector, session: Session, readings: Sequence[StagedReading], band: Band
) -> dict[int, Future[Score]]:
    """Have the last detector score some checks outside: what will become of each, by the identity of its reading."""
    begin = time.perf_counter()
    replies = detector.begin(session, [reading.point for reading in readings])
    found: dict[int, Future[Score]] = {}
    for reading, reply in zip(readings, replies, strict=True):

        def change(ended: Future[Score], reading: StagedReading = reading) -> Score:
            seconds = time.perf_counter() - begin
            try:
                (score,) = require_usable([ended.result()], [reading.point], detector.name)
            except Exception as error:
                reading.blame(detector, error, seconds)
                raise
            reading.take(detector, score, band, seconds)
            return reading.score()

        found[id(reading)] = followed(_promised(reply), change)
    return found


def _promised(begun: Begun) -> Future[Score]:
    if isinstance(begun, Future):
        return begun
    done: Future[Score] = Future()
    done.set_result(begun)
    return done


def _blend(first: float, second: float, band: Band) -> float:
    low, high = band
    value = (first + low * (1 - second) + high * second) / 2
    return min(max(value, low), high)  # whatever the rounding
