"""Calibrate a cascade of a probe and a second detector: its band, then one threshold for the whole of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anydepth.detectors import Cascade
from anydepth.errors import ConfigError
from anydepth.intervals import check_share, percent
from anydepth.policy import policy_record
from anydepth.probes.fitting.calibrate import Calibration, Trail
from anydepth.probes.fitting.contract import allowed_halts
from anydepth.types import Score

HIGH_SHARE = 0.1
"""Share of the target that may halt by the probe alone, above the band: the rest of it is left to the band."""

SecondScores = Callable[[Sequence[int]], Sequence[Score | Exception]]
"""A function that scores one answer with the second detector at the given depths, rising."""


@dataclass(frozen=True, slots=True)
class Band:
    """Where a probe is unsure, found on harmless answers.

    Attributes:
        low: Score of the probe that at most `share` of the answers reach.
        high: Score that at most a tenth of the target reaches; of few answers the first one above all of them.
        share: Share of the harmless answers that may have a check in the band or above it.
        answers: Number of the answers that it was found on.
    """

    low: float
    high: float
    share: float
    answers: int


def find_band(trails: Sequence[Trail], *, share: float = 0.2, target: float = 0.005) -> Band:
    """Find the band of a cascade from the probe's scores of harmless answers, by the highest score of each.

    Args:
        trails: The probe's scores, one trail per answer, at least one.
        share: Share of the answers that may reach `low`: more of it costs more checks of the second detector.
        target: False-positive rate of the whole cascade; a tenth of it may reach `high`.

    Raises:
        ConfigError: There are no answers, a share is not between 0 and 1, or the band is empty: the highest scores are
            the same, or `share` is no larger than a tenth of `target`.
    """
    check_share("share", share)
    check_share("target", target)
    if not trails:
        raise ConfigError("there are no harmless answers to find a band on; give some")
    peaks = sorted((max(trail.scores) for trail in trails), reverse=True)
    low, high = (_reached_by(rate, peaks) for rate in (share, HIGH_SHARE * target))
    if not low < high:
        raise ConfigError(
            f"the band of the cascade is empty: {percent(share)} of {len(peaks)} harmless answers and "
            f"{percent(HIGH_SHARE * target)} of them reach the same score of the probe, {low:g}; give a larger share, "
            "or more answers"
        )
    return Band(low, high, share, len(peaks))


def _reached_by(share: float, peaks: Sequence[float]) -> float:
    """The smallest score that at most `share` of the answers reach, 1 at most; `peaks` fall."""
    return min(math.nextafter(peaks[allowed_halts(share, len(peaks))], math.inf), 1.0)


@dataclass(frozen=True, slots=True)
class CascadeTrail:
    """One answer as the cascade scores it.

    Attributes:
        trail: Depths and scores of the cascade.
        asked: Number of its checks at which the second detector was run.
    """

    trail: Trail
    asked: int


def cascade_trail(cascade: Cascade, probe: Trail, second: SecondScores) -> CascadeTrail:
    """Turn the probe's scores of an answer into the cascade's; the second detector is run in the band only.

    Raises:
        Exception: What a check of the second detector raised.
    """
    unsure = [place for place, score in enumerate(probe.scores) if cascade.unsure(score)]
    replies = second([probe.depths[place] for place in unsure]) if unsure else ()
    scores = list(probe.scores)
    for place, reply in zip(unsure, replies, strict=True):
        if isinstance(reply, Exception):
            raise reply
        scores[place] = cascade.blend(probe.scores[place], reply.value)
    return CascadeTrail(Trail(probe.id, probe.source, probe.depths, tuple(scores)), len(unsure))


def cascade_record(
    cascade: Cascade, band: Band, calibration: Calibration, scored: Sequence[CascadeTrail]
) -> Mapping[str, Any]:
    """JSON-ready form: what stands in a probe's card under `calibration.cascade`, for `Cascade.calibrated`.

    The calibration of the whole cascade as it is recorded for a probe, and `policy`, `second`, `low`, `high`; `band`
    says what the band was found on; `checks`, `second_checks` and `second_share` say how often the second detector
    ran, over all depths of the answers.
    """
    note = "" if calibration.guarantee else "; the band was set on the same answers, which the figures do not allow for"
    checks, asked = sum(len(each.trail.depths) for each in scored), sum(each.asked for each in scored)
    return {
        **calibration.record(),
        **cascade.record(),
        "note": calibration.note + note,
        "policy": policy_record(calibration.policy),
        "band": {"share": band.share, "answers": band.answers},
        "checks": checks,
        "second_checks": asked,
        "second_share": asked / checks,
    }
