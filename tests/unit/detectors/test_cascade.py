"""Cascade: who is asked, and whose score counts."""

from collections.abc import Sequence

import numpy as np
import pytest

from anydepth.backends.protocol import Capability, CheckPoint
from anydepth.detectors import Cascade, LinearProbe, Rethink, require_usable
from anydepth.errors import CapabilityError, CheckError, ConfigError
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
    scores = Cascade(first, second).check(ScriptedSession(), row_points(7))
    assert [point.row for point in second.asked] == [2, 3, 4]
    assert [score.value for score in scores] == [0.0, 0.19, 0.9, 0.9, 0.9, 0.8, 1.0]
    assert scores[0].detail == "cheap"
    assert scores[3].detail == "dear after cheap 0.50: a remark"


def test_the_second_is_not_asked_without_need() -> None:
    second = Fixed("dear", [])
    Cascade(Fixed("cheap", [0.1, 0.9]), second).check(ScriptedSession(), row_points(2))
    assert second.asked == []


def test_no_points_ask_nothing() -> None:
    first = Fixed("cheap", [])
    assert Cascade(first, first).check(ScriptedSession(), []) == []
    assert first.asked == []


@pytest.mark.parametrize("band", [(0.5, 0.5), (0.8, 0.2), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5)])
def test_bad_band(band: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="low"):
        Cascade(Fixed("a", []), Fixed("b", []), *band)


def test_a_score_that_is_not_usable_is_an_error_of_its_detector() -> None:
    session, points = ScriptedSession(), row_points(1)
    with pytest.raises(CheckError, match="'cheap' gave the score nan at depth 0"):
        Cascade(Fixed("cheap", [float("nan")]), Fixed("dear", [0.0])).check(session, points)
    with pytest.raises(CheckError, match=r"'dear' gave the score 1\.5"):
        Cascade(Fixed("cheap", [0.5]), Fixed("dear", [1.5])).check(session, points)
    with pytest.raises(CheckError, match="0 scores for 1 checks"):
        require_usable([], points, "any")


def test_probe_then_rethink(probe: LinearProbe, backend: ScriptedBackend, points: list[CheckPoint]) -> None:
    cascade = Cascade(probe, Rethink())
    assert cascade.needs == {Capability.HIDDEN_STATES, Capability.LOOK_AHEAD}
    cascade.bind(backend)
    states = np.zeros((3, 1, WIDTH))
    states[:, 0, 5] = [-20, 0.5, 20]
    session = ScriptedSession(states=states, texts=["", "I cannot help with that.", ""])
    scores = cascade.check(session, points)
    assert [round(score.value, 3) for score in scores] == [0.0, 1.0, 1.0]
    assert session.asked[1] == (points[1],)
    assert scores[1].detail == "rethink after probe 0.50: I cannot help with that."


def test_bind_reaches_both(probe: LinearProbe, backend: ScriptedBackend) -> None:
    first, second = Fixed("a", []), Fixed("b", [])
    Cascade(first, second).bind(backend)
    assert (first.bound, second.bound) == (1, 1)
    backend.capabilities = frozenset({Capability.HIDDEN_STATES})
    with pytest.raises(CapabilityError, match="'rethink' needs look-ahead"):
        Cascade(probe, Rethink()).bind(backend)
