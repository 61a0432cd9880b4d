"""Cascade: who is asked, and whose score counts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anydepth.backends.protocol import Capability, CheckPoint
from anydepth.detectors import Cascade, LinearProbe, Rethink, require_usable
from anydepth.errors import CapabilityError, CheckError, ConfigError, ProbeError
from anydepth.policy import Ewma, Threshold
from anydepth.types import Score

from .conftest import WIDTH, ScriptedBackend, ScriptedSession


class Fixed:
    """A detector that gives each row its score, and counts."""

    needs = frozenset({Capability.HIDDEN_STATES})

    def __init__(self, name: str, values: Sequence[float], detail: str | None = None) -> None:
        self.name, self.values, self.detail = name, values, detail
        self.asked: list[CheckPoint] = []
        self.bound = 0

    def bind(self, backend: object) -> None:
        self.bound += 1

    def check(self, session: object, points: Sequence[CheckPoint]) -> list[Score]:
        self.asked.extend(points)
        return [Score(self.values[point.row], self.detail) for point in points]


def row_points(n: int) -> list[CheckPoint]:
    return [CheckPoint(row, 25 * row) for row in range(n)]


def test_only_the_unsure_are_asked_again() -> None:
    first = Fixed("cheap", [0.0, 0.19, 0.2, 0.5, 0.79, 0.8, 1.0])
    second = Fixed("dear", [0.9] * 7, "a remark")
    scores = Cascade(first, second, 0.2, 0.8).check(ScriptedSession(), row_points(7))
    assert [point.row for point in second.asked] == [2, 3, 4]
    # in the band: the mean of the first score and of 0.2 + 0.6 · 0.9 = 0.74
    assert [round(score.value, 6) for score in scores] == [0.0, 0.19, 0.47, 0.62, 0.765, 0.8, 1.0]
    assert scores[0].detail == "cheap"
    assert scores[3].detail == "dear 0.90 after cheap 0.50: a remark"


unit = st.floats(0, 1)


@given(st.lists(unit, min_size=2, max_size=2, unique=True).map(sorted), st.lists(unit, min_size=4, max_size=4))
def test_scores_are_on_one_scale(band: list[float], values: list[float]) -> None:
    """The score rises with both scores, stays in the band inside it, and is the first score outside."""
    cascade, (low, high) = Cascade(Fixed("a", []), Fixed("b", []), *band), band

    def score(first: float, second: float) -> float:
        return cascade.blend(first, second) if cascade.unsure(first) else first

    one, other = sorted(values[:2]), sorted(values[2:])
    assert score(one[0], other[0]) <= score(one[1], other[1]) + 1e-15
    for first in one:
        inside = low <= first < high
        assert (low <= score(first, other[0]) <= high) if inside else score(first, 0.5) == first


@given(st.lists(unit, min_size=2, max_size=2, unique=True).map(sorted), unit)
def test_a_yes_of_the_second_reaches_the_middle_of_the_band(band: list[float], place: float) -> None:
    cascade, (low, high) = Cascade(Fixed("a", []), Fixed("b", []), *band), band
    first = low + place * (high - low)
    assert cascade.policy == Threshold((low + high) / 2)
    if cascade.unsure(first):
        assert cascade.blend(first, 1.0) >= cascade.policy.threshold
        assert cascade.blend(first, 0.0) <= cascade.policy.threshold


def test_refusals_in_the_band_keep_the_order_of_the_first() -> None:
    cascade = Cascade(Fixed("a", []), Fixed("b", []), 0.2, 0.8)
    refused = [cascade.blend(first, 1.0) for first in (0.2, 0.4, 0.79)]
    assert refused == sorted(refused) and len(set(refused)) == 3
    assert cascade.blend(0.79, 0.0) < refused[0]


def test_the_second_is_not_asked_without_need() -> None:
    second = Fixed("dear", [])
    Cascade(Fixed("cheap", [0.1, 0.9]), second, 0.2, 0.8).check(ScriptedSession(), row_points(2))
    assert second.asked == []


def test_no_points_ask_nothing() -> None:
    first = Fixed("cheap", [])
    assert Cascade(first, first, 0.2, 0.8).check(ScriptedSession(), []) == []
    assert first.asked == []


@pytest.mark.parametrize("band", [(0.5, 0.5), (0.8, 0.2), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5), (True, 0.5)])
def test_bad_band(band: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"must keep 0 <= low < high <= 1"):
        Cascade(Fixed("a", []), Fixed("b", []), *band)


def test_without_a_band_there_is_no_cascade(probe: LinearProbe) -> None:
    for make in (lambda: Cascade(probe, Rethink()), lambda: Cascade(probe, Rethink(), 0.2)):
        with pytest.raises(ConfigError, match=r"no band \(low is .*anydepth calibrate .* --cascade rethink"):
            make()
    with pytest.raises(ConfigError, match="not calibrated for a cascade; run `anydepth calibrate"):
        Cascade.calibrated(probe)


CARD = {"second": {"mode": "score", "max_new_tokens": 20}, "low": 0.1, "high": 0.9}


def with_cascade(probe: LinearProbe, **changes: Any) -> LinearProbe:
    record = {**CARD, "policy": {"name": "ewma", "alpha": 0.4, "threshold": 0.6}, **changes}
    card = replace(probe.card, calibration={**probe.card.calibration, "cascade": record})
    return LinearProbe(probe.weight, probe.bias, card)


def test_a_calibrated_cascade_is_read_from_the_card(probe: LinearProbe, tmp_path: Path) -> None:
    with_cascade(probe).save(tmp_path / "probe.safetensors")
    found = Cascade.calibrated(LinearProbe.load(tmp_path / "probe.safetensors"))
    assert (found.low, found.high, found.policy) == (0.1, 0.9, Ewma(0.4, 0.6))
    assert isinstance(found.second, Rethink) and found.second.mode == "score"
    assert found.record() == CARD


@pytest.mark.parametrize(
    "changes", [{"low": None}, {"high": 2.0}, {"policy": {"name": "x"}}, {"second": {"mode": "odd"}}, {"second": 3}]
)
def test_a_damaged_cascade_of_a_card_is_refused(probe: LinearProbe, changes: Any) -> None:
    with pytest.raises(ProbeError, match="card's cascade is not usable"):
        Cascade.calibrated(with_cascade(probe, **changes))


def test_only_a_rethink_can_be_stored() -> None:
    with pytest.raises(ConfigError, match="only a Rethink can be stored"):
        Cascade(Fixed("a", []), Fixed("b", []), 0.2, 0.8).record()


def test_a_score_that_is_not_usable_is_an_error_of_its_detector() -> None:
    session, points = ScriptedSession(), row_points(1)
    with pytest.raises(CheckError, match="'cheap' gave the score nan at depth 0"):
        Cascade(Fixed("cheap", [float("nan")]), Fixed("dear", [0.0]), 0.2, 0.8).check(session, points)
    with pytest.raises(CheckError, match=r"'dear' gave the score 1\.5"):
        Cascade(Fixed("cheap", [0.5]), Fixed("dear", [1.5]), 0.2, 0.8).check(session, points)
    with pytest.raises(CheckError, match="0 scores for 1 checks"):
        require_usable([], points, "any")


def test_probe_then_rethink(probe: LinearProbe, backend: ScriptedBackend, points: list[CheckPoint]) -> None:
    cascade = Cascade(probe, Rethink(), 0.2, 0.8)
    assert cascade.needs == {Capability.HIDDEN_STATES, Capability.LOOK_AHEAD}
    cascade.bind(backend)
    states = np.zeros((3, 1, WIDTH))
    states[:, 0, 5] = [-20, 0.5, 20]  # scores 0, 0.5 and 1
    session = ScriptedSession(states=states, texts=["", "I cannot help with that.", ""])
    scores = cascade.check(session, points)
    assert [round(score.value, 3) for score in scores] == [0.0, 0.65, 1.0]
    assert session.asked[1] == (points[1],)
    assert scores[1].detail == "rethink 1.00 after probe 0.50: I cannot help with that."


def test_bind_reaches_both(probe: LinearProbe, backend: ScriptedBackend) -> None:
    first, second = Fixed("a", []), Fixed("b", [])
    Cascade(first, second, 0.2, 0.8).bind(backend)
    assert (first.bound, second.bound) == (1, 1)
    backend.capabilities = frozenset({Capability.HIDDEN_STATES})
    with pytest.raises(CapabilityError, match="'rethink' needs look-ahead"):
        Cascade(probe, Rethink(), 0.2, 0.8).bind(backend)
