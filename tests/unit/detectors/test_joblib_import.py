"""Importing scikit-learn probes: equal to scikit-learn, and only on request."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.errors import MissingExtra, ProbeError
from anydepth.probes import import_joblib
from anydepth.types import Score

from .conftest import WIDTH

joblib = pytest.importorskip("joblib")
sklearn = pytest.importorskip("sklearn")

from sklearn.linear_model import LinearRegression, LogisticRegression  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import MinMaxScaler, StandardScaler  # noqa: E402

RANDOM = np.random.default_rng(0)
STATES = RANDOM.normal(loc=3, scale=[1, 2, 5, 0.1, 1, 10], size=(80, WIDTH))
LABELS = (STATES @ RANDOM.normal(size=WIDTH) > 10).astype(float)  # the published probes have float labels


def dump(model: Any, tmp_path: Path) -> Path:
    path = tmp_path / "layer_3.joblib"
    joblib.dump(model, path)
    return path


def values(probe: LinearProbe, states: np.ndarray) -> list[float]:
    scores = probe.score_each(states[:, None])
    assert all(isinstance(score, Score) for score in scores)
    return [score.value for score in scores if isinstance(score, Score)]


@pytest.mark.parametrize(
    "model",
    [
        LogisticRegression(class_weight="balanced", max_iter=1000),
        LogisticRegression(fit_intercept=False, max_iter=1000),
        make_pipeline(StandardScaler(), LogisticRegression()),
        make_pipeline(StandardScaler(with_mean=False), LogisticRegression()),
        make_pipeline(StandardScaler(with_std=False), LogisticRegression(max_iter=1000)),
    ],
)
def test_scores_are_those_of_scikit_learn(model: Any, card: ProbeCard, tmp_path: Path) -> None:
    model.fit(STATES, LABELS)
    probe = import_joblib(dump(model, tmp_path), card, allow_pickle=True)
    states = STATES.astype(np.float32)
    assert values(probe, states) == pytest.approx(model.predict_proba(states)[:, 1], abs=1e-6)
    probe.save(tmp_path / "probe.safetensors")
    assert values(LinearProbe.load(tmp_path / "probe.safetensors"), states) == values(probe, states)


def test_the_harmful_class_is_named(card: ProbeCard, tmp_path: Path) -> None:
    model = LogisticRegression(max_iter=1000).fit(STATES, np.where(LABELS == 1, "bad", "good"))
    path = dump(model, tmp_path)
    probe = import_joblib(path, card, positive="bad", allow_pickle=True)  # "bad" sorts first
    assert values(probe, STATES) == pytest.approx(model.predict_proba(STATES)[:, 0], abs=1e-6)
    with pytest.raises(ProbeError, match=r"classes \['bad', 'good'\], not 1"):
        import_joblib(path, card, allow_pickle=True)


def test_a_pickle_is_not_read_without_leave(card: ProbeCard, tmp_path: Path) -> None:
    class Loaded:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "code ran",)

    path = dump(Loaded(), tmp_path)
    with pytest.raises(ProbeError, match=r"runs whatever code.*--allow-pickle"):
        import_joblib(path, card)
    assert not (tmp_path / "code ran").exists()


def test_more_or_fewer_than_two_classes(card: ProbeCard, tmp_path: Path) -> None:
    three = LogisticRegression(max_iter=1000).fit(STATES, RANDOM.integers(0, 3, len(STATES)))
    with pytest.raises(ProbeError, match="classes"):
        import_joblib(dump(three, tmp_path), card, allow_pickle=True)
    with pytest.raises(ProbeError, match="classes"):
        import_joblib(dump(LogisticRegression(), tmp_path), card, allow_pickle=True)


@pytest.mark.parametrize(
    "model",
    [
        LinearRegression(),
        make_pipeline(MinMaxScaler(), LogisticRegression()),
        make_pipeline(StandardScaler(), StandardScaler(), LogisticRegression()),
        {"weight": [1.0]},
    ],
)
def test_other_models_are_refused(model: Any, card: ProbeCard, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="only LogisticRegression"):
        import_joblib(dump(model, tmp_path), card, allow_pickle=True)


def test_another_width_than_the_cards(card: ProbeCard, tmp_path: Path) -> None:
    path = dump(LogisticRegression(max_iter=1000).fit(STATES, LABELS), tmp_path)
    wider = dataclasses.replace(card, model=dataclasses.replace(card.model, hidden_size=8))
    with pytest.raises(ProbeError, match="hidden size 8"):
        import_joblib(path, wider, allow_pickle=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"coef_": None},
        {"coef_": "text"},
        {"coef_": np.array([[object()]])},
        {"intercept_": []},
        {"classes_": None},
    ],
)
def test_a_regression_with_parts_that_make_no_sense_is_an_error(
    card: ProbeCard, tmp_path: Path, changes: dict[str, Any]
) -> None:
    model = LogisticRegression(max_iter=1000).fit(STATES, LABELS)
    vars(model).update(changes)
    with pytest.raises(ProbeError, match=r"layer_3\.joblib"):
        import_joblib(dump(model, tmp_path), card, allow_pickle=True)


def test_an_empty_pipeline_is_an_error(card: ProbeCard, tmp_path: Path) -> None:
    model = make_pipeline(StandardScaler())
    model.steps = []
    with pytest.raises(ProbeError, match=r"layer_3\.joblib"):
        import_joblib(dump(model, tmp_path), card, allow_pickle=True)


def test_files_that_cannot_be_read(card: ProbeCard, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="there is no file"):
        import_joblib(tmp_path / "missing.joblib", card, allow_pickle=True)
    path = dump(LogisticRegression().fit(STATES, LABELS), tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ProbeError, match="not a joblib file"):
        import_joblib(path, card, allow_pickle=True)


def test_a_file_of_another_scikit_learn_version_is_read(
    card: ProbeCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LogisticRegression(max_iter=1000).fit(STATES, LABELS)
    with monkeypatch.context() as patch:
        patch.setattr("sklearn.base.__version__", "1.3.0")
        path = dump(model, tmp_path)
    probe = import_joblib(path, card, allow_pickle=True)
    assert values(probe, STATES) == pytest.approx(model.predict_proba(STATES)[:, 1], abs=1e-6)


def test_missing_scikit_learn_says_what_to_install(
    card: ProbeCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "joblib", None)
    with pytest.raises(MissingExtra, match=r"anydepth\[fit\]"):
        import_joblib(tmp_path / "any.joblib", card, allow_pickle=True)
