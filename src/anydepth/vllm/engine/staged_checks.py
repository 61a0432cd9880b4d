"""Take the checks of one request through the stages of a cascade."""

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from anydepth.backends.protocol import CheckPoint
from anydepth.detectors.cascade import StagedReading
from anydepth.detectors.detector import Detector, require_usable
from anydepth.driver import settled
from anydepth.types import Score
from anydepth.vllm.setup import Setup


@dataclass(slots=True, eq=False)
class StagedChecks:
    """Checks that are made together; a detector that is no cascade has one stage.

    Attributes:
        at: Which of `Setup.stages` makes the checks now, from 0.
        unsure: Depth -> the check's score so far, where the stage `at` is to be asked; empty at stage 0.
        results: Depth -> what was decided: a score, or an error.
        outside: Depth -> what a detector outside of the engine has said, or what will become of its check.
        begun: When the stage began, by `time.perf_counter`.
    """

    at: int = 0
    unsure: dict[int, StagedReading] = field(default_factory=dict)
    results: dict[int, Score | Exception] = field(default_factory=dict)
    outside: dict[int, Score | Exception | Future[Score]] = field(default_factory=dict)
    begun: float = 0.0

    def take(self, setup: Setup, replies: Mapping[int, Score | Exception]) -> None:
        """Take in what the stage replied, a depth: the check is decided, or the next stage is to be asked."""
        if len(setup.stages) == 1:
            self.results |= replies
            return
        detector, band = setup.stages[self.at]
        # The first stage is part of steps that are made anyway: it has no time of its own.
        seconds = time.perf_counter() - self.begun if self.at else 0.0
        readings = {depth: self.unsure.get(depth) or StagedReading(CheckPoint(0, depth)) for depth in replies}
        self.at, self.unsure, self.begun = self.at + 1, {}, time.perf_counter()
        following = setup.stages[self.at][1] if self.at < len(setup.stages) else None
        for depth, reading in readings.items():
            found = _taken(reading, detector, replies[depth], band, seconds)
            if isinstance(found, Exception) or following is None or not following[0] <= found.value < following[1]:
                self.results[depth] = found
            else:
                self.unsure[depth] = reading

    def take_outside(self, setup: Setup) -> bool:
        """Take in what came from outside; False while something is missing, or nothing was asked there."""
        waiting = any(isinstance(each, Future) and not each.done() for each in self.outside.values())
        if waiting or not self.outside:
            return False
        replies = {depth: settled(each, depth) for depth, each in self.outside.items()}
        self.outside = {}
        self.take(setup, replies)
        return True

    def finish(self) -> dict[int, Score | Exception]:
        """What was decided; the next checks begin at the first stage again."""
        results, self.results, self.at = self.results, {}, 0
        return results


def _taken(
    reading: StagedReading,
    detector: Detector,
    reply: Score | Exception,
    band: tuple[float, float] | None,
    seconds: float,
) -> Score | Exception:
    """The score of a check with one more reply, or the error with which it fails."""
    try:
        if isinstance(reply, Exception):
            raise reply
        (usable,) = require_usable([reply], [reading.point], detector.name)
    except Exception as error:
        return reading.blame(detector, error, seconds)
    reading.take(detector, usable, band, seconds)
    return reading.score()
