"""Score with a cheap detector, and with a second one only where the first is unsure."""

from collections.abc import Sequence

from anydepth.backends.protocol import CheckPoint, Reader, Session
from anydepth.detectors.detector import Detector, require_usable
from anydepth.errors import ConfigError
from anydepth.types import Score


class Cascade:
    """Lets `second` decide the checks that `first` scores in [low, high); the others keep the first score.

    In the band the second detector's score is the score, whatever the first said. A policy over a cascade needs its
    threshold above `low` and at most `high`, so that what the first detector decides alone is decided.

    Args:
        first: The cheap detector, usually a `LinearProbe`.
        second: The one that costs more, usually a `Rethink`.
        low: Score of the first below which the second is not run: the check is harmless.
        high: Score of the first from which on the second is not run: the check is harmful.

    Raises:
        ConfigError: Not 0 ≤ low < high ≤ 1.
    """

    name = "cascade"

    def __init__(self, first: Detector, second: Detector, low: float = 0.2, high: float = 0.8) -> None:
        if not 0 <= low < high <= 1:
            raise ConfigError(f"low is {low!r} and high is {high!r}; they must keep 0 <= low < high <= 1")
        self.first, self.second = first, second
        self.low, self.high = low, high
        self.needs = first.needs | second.needs

    @property
    def parts(self) -> tuple[Detector, Detector]:
        """The two detectors, each of which makes checks of its own."""
        return self.first, self.second

    def bind(self, backend: Reader) -> None:
        """Bind both detectors; what either cannot do with this backend is an error now."""
        self.first.bind(backend)
        self.second.bind(backend)

    def check(self, session: Session, points: Sequence[CheckPoint]) -> list[Score]:
        """Score each point; the detail names the detector that decided."""
        if not points:
            return []
        scores = require_usable(self.first.check(session, points), points, self.first.name)
        unsure = [index for index, score in enumerate(scores) if self.low <= score.value < self.high]
        decided = [_signed(score, self.first.name) for score in scores]
        if unsure:
            asked = [points[index] for index in unsure]
            replies = require_usable(self.second.check(session, asked), asked, self.second.name)
            for index, reply in zip(unsure, replies, strict=True):
                decided[index] = _signed(reply, self.second.name, f"{self.first.name} {scores[index].value:.2f}")
        return decided


def _signed(score: Score, *names: str) -> Score:
    """The score with who decided, and after whom, before its own detail."""
    who = " after ".join(names)
    return Score(score.value, f"{who}: {score.detail}" if score.detail else who)
