"""The band of a cascade and the calibration of the whole of it, on scores written by hand."""

import json
import math
from collections.abc import Sequence

import pytest

from anydepth.detectors import Cascade, Rethink
from anydepth.errors import CheckError, ConfigError
from anydepth.policy import Threshold
from anydepth.probes.fitting.band import Band, CascadeTrail, cascade_record, cascade_trail, find_band
from anydepth.probes.fitting.calibrate import Trail, calibrate, peak
from anydepth.testing import ScriptedDetector
from anydepth.types import Score


def trail(number: int, *scores: float) -> Trail:
    return Trail(f"b{number}", "chat", tuple(range(len(scores))), scores)


HUNDRED = [trail(n, 0.0, n / 100, 0.0) for n in range(100)]
"""Answers whose highest scores are 0, 0.01 … 0.99."""


def above(score: float) -> float:
    return math.nextafter(score, 1)


def test_a_share_of_the_answers_reaches_the_band_and_a_tenth_of_the_target_its_end() -> None:
    band = find_band(HUNDRED, share=0.2, target=0.3)
    assert (band.low, band.high) == (above(0.79), above(0.96))  # 20 and 3 of 100 answers reach these
    assert (band.share, band.answers) == (0.2, 100)
    reached = [sum(max(each.scores) >= end for each in HUNDRED) for end in (band.low, band.high)]
    assert reached == [20, 3]


def test_of_few_answers_the_band_ends_above_all_of_them() -> None:
    assert find_band(HUNDRED, target=0.05).high == above(0.99)
    assert find_band([*HUNDRED, trail(100, 1.0)], target=0.05).high == 1.0  # a score is no larger


@pytest.mark.parametrize(
    ("trails", "share", "target", "message"),
    [
        ([trail(0, 0.5), trail(1, 0.5)], 0.5, 0.005, "band of the cascade is empty.*reach the same score.*0.5"),
        (HUNDRED, 0.03, 0.3, "give a larger share"),
        ([], 0.2, 0.005, "no harmless answers"),
        (HUNDRED, 1.5, 0.005, "share is 1.5"),
    ],
)
def test_an_empty_band_is_refused(trails: list[Trail], share: float, target: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_band(trails, share=share, target=target)


class Second:
    """Scores of the second detector by depth; notes where it was run."""

    def __init__(self, reply: Score | Exception) -> None:
        self.reply, self.asked = reply, list[int]()

    def __call__(self, depths: Sequence[int]) -> list[Score | Exception]:
        self.asked += depths
        return [self.reply] * len(depths)


def cascade(band: Band) -> Cascade:
    return Cascade(ScriptedDetector({}), Rethink(), band.low, band.high)


def test_the_second_detector_runs_in_the_band_only() -> None:
    second, probe = Second(Score(1.0)), Trail("b", "chat", (0, 1, 25, 50), (0.1, 0.5, 0.9, 0.7))
    found = cascade_trail(cascade(Band(0.5, 0.8, 0.2, 9)), probe, second)
    assert (second.asked, found.asked) == ([1, 50], 2)
    assert found.trail.scores == pytest.approx((0.1, 0.65, 0.9, 0.75))
    assert (found.trail.id, found.trail.depths) == ("b", (0, 1, 25, 50))
    assert cascade_trail(cascade(Band(0.95, 1.0, 0.2, 9)), probe, second) == CascadeTrail(probe, 0)
    assert second.asked == [1, 50]


def test_a_failed_check_of_the_second_is_its_error() -> None:
    with pytest.raises(CheckError, match="broken"):
        cascade_trail(cascade(Band(0.5, 0.8, 0.2, 9)), trail(0, 0.6), Second(CheckError("broken")))


def test_one_threshold_for_the_whole_cascade() -> None:
    """With a target of 3 %, what the probe scores above the band halts, and of the refusals in it the highest two."""
    band = Band(0.75, 0.985, 0.25, 100)
    made = cascade(band)
    refused = {f"b{n}" for n in (76, 80, 84, 90)}
    scored = [cascade_trail(made, each, Second(Score(float(each.id in refused)))) for each in HUNDRED]
    found = calibrate(Threshold(), [each.trail for each in scored], target=0.03, data="by hand")
    halted = {each.trail.id for each in scored if peak(found.policy, each.trail) >= found.policy.threshold}
    assert halted == {"b99", "b90", "b84"}  # of the refused those that the probe scores highest
    assert found.achieved == 0.03
    record = cascade_record(made, band, found, scored)
    assert json.loads(json.dumps(record)) == record
    assert (record["checks"], record["second_checks"], record["second_share"]) == (300, 24, 0.08)
    assert (record["low"], record["high"], record["band"]) == (0.75, 0.985, {"share": 0.25, "answers": 100})
    assert record["policy"] == {"name": "threshold", "threshold": found.policy.threshold}
    assert record["second"] == {"mode": "look-ahead", "max_new_tokens": 20}
    assert (record["answers"], record["halted"], record["achieved"], record["verified"]) == (100, 3, 0.03, False)
    assert "the band was set on the same answers" in record["note"]
