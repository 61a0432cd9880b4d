"""Rethink: the look-ahead, the openers' probability and their calibration."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from anydepth.backends.protocol import Capability, CheckPoint
from anydepth.detectors import Rethink, calibrate_openers
from anydepth.errors import CapabilityError, CheckError, ConfigError, ProbeMismatch

from .conftest import VOCABULARY, ScriptedBackend, ScriptedSession

REFUSAL = "I'm sorry, but I can't assist with that. Let me know if there is anything else I can do for you today."
ANSWER = "Sure, here is the next part of the letter to the neighbours about the garden fence."


def logprobs(**probabilities: float) -> np.ndarray:
    """One row over the vocabulary; what is not named shares the rest."""
    rest = (1 - sum(probabilities.values())) / (len(VOCABULARY) - len(probabilities))
    with np.errstate(divide="ignore"):
        return np.log([probabilities.get(word, rest) for word in VOCABULARY])


def test_look_ahead_scores_refusals(backend: ScriptedBackend, points: list[CheckPoint]) -> None:
    detector = Rethink()
    detector.bind(backend)
    session = ScriptedSession(texts=[REFUSAL, ANSWER, ""])
    scores = detector.check(session, points)
    assert [score.value for score in scores] == [1.0, 0.0, 0.0]
    assert scores[1].detail == ANSWER
    assert scores[2].detail == "(no text)"


def test_look_ahead_stops_as_soon_as_it_is_decided(points: list[CheckPoint]) -> None:
    session = ScriptedSession(texts=[REFUSAL])
    [score] = Rethink().check(session, points[:1])
    assert score.value == 1.0
    assert len(session.written[0].split()) < len(REFUSAL.split()) / 2


def test_look_ahead_is_no_longer_than_asked(points: list[CheckPoint]) -> None:
    session = ScriptedSession(texts=[ANSWER])
    Rethink(max_new_tokens=3).check(session, points[:1])
    assert session.written == ["Sure, here is"]


@pytest.mark.parametrize("mode", ["look-ahead", "score"])
def test_no_points_ask_nothing(mode: str) -> None:
    session = ScriptedSession()
    assert Rethink(mode).check(session, []) == []
    assert session.asked == []


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "guess"},
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.5},
        {"mode": "score", "opener_ids": []},
        {"mode": "score", "opener_ids": [-1]},
        {"mode": "score", "opener_ids": ["Sorry"]},
    ],
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Rethink(**options)


@pytest.mark.parametrize(("mode", "needed"), [("look-ahead", Capability.LOOK_AHEAD), ("score", Capability.NEXT_TOKEN)])
def test_missing_capability(backend: ScriptedBackend, mode: str, needed: Capability) -> None:
    backend.capabilities = frozenset(Capability) - {needed, Capability.TOKEN_TEXTS}
    with pytest.raises(CapabilityError, match=needed.value):
        Rethink(mode).bind(backend)


def test_score_is_the_mass_of_the_clear_openers(backend: ScriptedBackend, points: list[CheckPoint]) -> None:
    detector = Rethink("score")
    detector.bind(backend)
    rows = [logprobs(Sorry=0.5, Unfortunately=0.2, I=0.2), logprobs(Sorry=0.0, Unfortunately=0.1, Sure=0.8)]
    scores = detector.check(ScriptedSession(logprobs=rows), points[:2])
    assert [score.value for score in scores] == pytest.approx([0.7, 0.1])


def test_opener_that_shares_its_first_token_is_dropped(backend: ScriptedBackend) -> None:
    backend.vocabulary = ["Unfortunately", "I", "S", "other"]  # "Sorry" and "Sure" both begin with "S" here
    detector = Rethink("score")
    detector.bind(backend)
    assert detector.opener_ids == (0,)


def test_no_opener_left(backend: ScriptedBackend) -> None:
    backend.vocabulary = ["S", "other"]
    with pytest.raises(ConfigError, match="calibrate"):
        Rethink("score").bind(backend)


def test_score_before_bind_is_an_error(points: list[CheckPoint]) -> None:
    with pytest.raises(CheckError, match="bind"):
        Rethink("score").check(ScriptedSession(logprobs=[logprobs()]), points[:1])


def test_logprobs_that_are_not_usable(backend: ScriptedBackend, points: list[CheckPoint]) -> None:
    detector = Rethink("score", opener_ids=[0, 2])
    detector.bind(backend)
    broken = np.array([logprobs(), logprobs()])
    broken[1, 2] = np.nan
    with pytest.raises(CheckError, match="depth 25"):
        detector.check(ScriptedSession(logprobs=broken), points[:2])
    with pytest.raises(CheckError, match="1 scores for 2 checks"):
        detector.check(ScriptedSession(logprobs=[logprobs()]), points[:2])
    with pytest.raises(CheckError, match="outside"):
        detector.check(ScriptedSession(logprobs=np.zeros((2, 2))), points[:2])
    with pytest.raises(CheckError, match=r"score 2\.0"):
        detector.check(ScriptedSession(logprobs=np.zeros((2, 8))), points[:2])


def test_rounding_above_one_is_one(backend: ScriptedBackend, points: list[CheckPoint]) -> None:
    detector = Rethink("score", opener_ids=[0])
    detector.bind(backend)
    row = np.full((1, 8), -np.inf)
    row[0, 0] = 1e-6
    assert detector.check(ScriptedSession(logprobs=row), points[:1])[0].value == 1.0


def test_calibration_keeps_what_tells_refusals_apart() -> None:
    refusing = np.array([logprobs(Sorry=0.4, I=0.5, Here=0.01), logprobs(Sorry=0.2, I=0.7, Here=0.01)])
    complying = np.array([logprobs(Sorry=0.01, I=0.4, Here=0.5), logprobs(Sorry=0.01, I=0.3, Here=0.6)])
    ids = [VOCABULARY.index(word) for word in ("Sorry", "I", "Here")]
    assert calibrate_openers(refusing, complying, ids) == (0,)
    assert calibrate_openers(refusing, complying, ids, min_ratio=1.0) == (0, 2)
    with pytest.raises(ConfigError, match="no opener"):
        calibrate_openers(complying, refusing, ids[:2])


@pytest.mark.parametrize(
    ("refusing", "complying", "ids", "ratio"),
    [
        (np.zeros((1, 4)), np.zeros((1, 5)), [0], 2.0),
        (np.zeros(4), np.zeros((1, 4)), [0], 2.0),
        (np.zeros((0, 4)), np.zeros((1, 4)), [0], 2.0),
        (np.zeros((1, 4)), np.zeros((1, 4)), [4], 2.0),
        (np.zeros((1, 4)), np.zeros((1, 4)), [0], 0.5),
        (np.zeros((1, 4)), np.zeros((1, 4)), [], 2.0),
    ],
)
def test_calibration_input_that_does_not_fit(refusing: Any, complying: Any, ids: list[int], ratio: float) -> None:
    with pytest.raises(ConfigError):
        calibrate_openers(refusing, complying, ids, min_ratio=ratio)


def test_calibrated_detector_takes_the_models_own_openers(backend: ScriptedBackend, points: list[CheckPoint]) -> None:
    detector = Rethink("score")
    detector.bind(backend)
    refusing = np.array([logprobs(I=0.9, Sorry=0.02), logprobs(I=0.7, other=0.25)])
    complying = np.array([logprobs(I=0.05, Sure=0.8), logprobs(I=0.05, Here=0.8)])
    calibrated = detector.calibrate(refusing, complying)
    assert calibrated.opener_ids is not None
    assert VOCABULARY.index("I") in calibrated.opener_ids
    assert VOCABULARY.index("Sure") not in calibrated.opener_ids
    calibrated.bind(backend)
    scores = calibrated.check(ScriptedSession(logprobs=[refusing[0], complying[0]]), points[:2])
    assert scores[0].value > 0.8 > 0.2 > scores[1].value


def test_calibrate_needs_a_model() -> None:
    with pytest.raises(ConfigError, match="bind"):
        Rethink("score").calibrate(np.zeros((1, 4)), np.zeros((1, 4)))


def test_record_round_trip(backend: ScriptedBackend) -> None:
    for detector in (Rethink(), Rethink(max_new_tokens=8), Rethink("score", opener_ids=[3, 1], fingerprint="f")):
        again = Rethink.from_record(detector.record())
        assert again.record() == detector.record()
        assert (again.mode, again.needs, again.opener_ids) == (detector.mode, detector.needs, detector.opener_ids)
    uncalibrated = Rethink("score")
    uncalibrated.bind(backend)
    assert "opener_ids" not in uncalibrated.record()
    with pytest.raises(ConfigError, match="colour"):
        Rethink.from_record({"mode": "score", "colour": "green"})


def test_openers_of_another_model_are_refused(backend: ScriptedBackend) -> None:
    detector = Rethink("score", opener_ids=[1], fingerprint="fingerprint-1")
    detector.bind(backend)
    with pytest.raises(ProbeMismatch, match=r"fingerprint-1.*fingerprint-2"):
        detector.bind(ScriptedBackend(dataclasses.replace(backend.identity, fingerprint="fingerprint-2")))


def test_rebinding_an_uncalibrated_detector_looks_the_openers_up_again(backend: ScriptedBackend) -> None:
    detector = Rethink("score")
    detector.bind(backend)
    other = ScriptedBackend(backend.identity, vocabulary=["I", "Sure", "Sorry", "Here", "other"])
    detector.bind(other)
    assert detector.opener_ids == (2,)
