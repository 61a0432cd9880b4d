"""Score with a cheap detector, and with a second one only where the first is unsure."""

from collections.abc import Sequence
from typing import Any

from anydepth.backends.protocol import CheckPoint, Reader, Session
from anydepth.config import check_band
from anydepth.detectors.detector import Detector, require_usable
from anydepth.detectors.probe import LinearProbe
from anydepth.detectors.rethink import Rethink
from anydepth.errors import ConfigError, ProbeError
from anydepth.policy import Policy, Threshold, policy_from
from anydepth.types import Score

_COMMAND = "`anydepth calibrate PROBE --model MODEL --benign FILE --cascade rethink`"


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

    Args:
        first: The cheap detector, usually a `LinearProbe`.
        second: The one that costs more, usually a `Rethink`.
        low: Score of the first below which the second is not run.
        high: Score of the first from which on the second is not run.
        policy: What the cascade was calibrated with; by default a `Threshold` in the middle of the band.

    Raises:
        ConfigError: There is no band, or it is not 0 ≤ low < high ≤ 1.
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
    ) -> None:
        if low is None or high is None:
            raise ConfigError(
                f"a cascade of {first.name} and {second.name} has no band (low is {low!r}, high is {high!r}); give "
                f"both, or calibrate the probe with {_COMMAND} and take Cascade.calibrated(probe)"
            )
        self.low, self.high = check_band(low, high)
        self.first, self.second = first, second
        self.policy: Policy = policy or Threshold((self.low + self.high) / 2)
        self.needs = first.needs | second.needs

    @classmethod
    def calibrated(cls, probe: LinearProbe) -> "Cascade":
        """The cascade that `probe` was calibrated for: second detector, band and policy are those of its card.

        Raises:
            ConfigError: The probe was not calibrated for a cascade.
            ProbeError: What the card says of the cascade cannot be used.
        """
        record = probe.card.calibration.get("cascade")
        if record is None:
            raise ConfigError(f"the probe was not calibrated for a cascade; run {_COMMAND}, or give low and high")
        try:
            second, policy = Rethink.from_record(record["second"]), policy_from(record["policy"])
            return cls(probe, second, record["low"], record["high"], policy=policy)
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise ProbeError(f"the card's cascade is not usable ({error!r}); run {_COMMAND} again") from error

    @property
    def parts(self) -> tuple[Detector, Detector]:
        """The two detectors, each of which makes checks of its own."""
        return self.first, self.second

    def bind(self, backend: Reader) -> None:
        """Bind both detectors; what either cannot do with this backend is an error now."""
        self.first.bind(backend)
        self.second.bind(backend)

    def unsure(self, first: float) -> bool:
        """True if a check with this first score is in the band: the second detector scores it as well."""
        return self.low <= first < self.high

    def blend(self, first: float, second: float) -> float:
        """The score of a check in the band, from both scores; at least `low` and at most `high`."""
        value = (first + self.low * (1 - second) + self.high * second) / 2
        return min(max(value, self.low), self.high)  # whatever the rounding

    def check(self, session: Session, points: Sequence[CheckPoint]) -> list[Score]:
        """Score each point; the detail names the detector that was asked last, and both scores where both were."""
        if not points:
            return []
        scores = require_usable(self.first.check(session, points), points, self.first.name)
        decided = [_signed(score.value, self.first.name, score.detail) for score in scores]
        unsure = [index for index, score in enumerate(scores) if self.unsure(score.value)]
        if unsure:
            asked = [points[index] for index in unsure]
            replies = require_usable(self.second.check(session, asked), asked, self.second.name)
            for index, reply in zip(unsure, replies, strict=True):
                decided[index] = self._both(scores[index].value, reply)
        return decided

    def record(self) -> dict[str, Any]:
        """What `calibrated` reads of a card, but for the policy; ConfigError if the second is no `Rethink`."""
        if not isinstance(self.second, Rethink):
            raise ConfigError(f"the second detector is {self.second.name!r}; only a Rethink can be stored in a card")
        return {"second": self.second.record(), "low": self.low, "high": self.high}

    def _both(self, first: float, reply: Score) -> Score:
        who = f"{self.second.name} {reply.value:.2f} after {self.first.name} {first:.2f}"
        return _signed(self.blend(first, reply.value), who, reply.detail)


def _signed(value: float, who: str, detail: str | None) -> Score:
    return Score(value, f"{who}: {detail}" if detail else who)
