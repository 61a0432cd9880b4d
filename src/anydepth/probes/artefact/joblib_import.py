"""Turn a published scikit-learn probe (`.joblib`) into a `LinearProbe`."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.errors import MissingExtra, ProbeError
from anydepth.extras import require
from anydepth.reasons import reason


def import_joblib(
    path: str | Path, card: ProbeCard, *, positive: float | str = 1, allow_pickle: bool = False
) -> LinearProbe:
    """Read a logistic regression stored with joblib and fold its standardisation into weight and bias.

    The probes published with the paper are plain `LogisticRegression` with the classes 0 (benign) and 1 (harmful), one
    file per layer. They read the last token of the header that the file's folder names, so `card.header_ids` are the
    ids of that text and `card.reads` one read of the last of them; the model's weights are not recorded (no
    fingerprint).

    Args:
        path: The `.joblib` file.
        card: Model, header, read token and site that the probe was fitted on; a scikit-learn file does not say.
        positive: The class that means harmful.
        allow_pickle: Must be True: a `.joblib` file is a pickle, and reading it runs whatever code it holds.

    Raises:
        ProbeError: `allow_pickle` is False, the file cannot be read, or it is no binary logistic regression (alone, or
            after a `StandardScaler`) of the card's hidden size.
        MissingExtra: scikit-learn is not installed.
    """
    path = Path(path)
    check_pickle(path, allow_pickle)
    model = _load(path)
    try:
        scaler, classifier = _parts(model, path)
        weight, bias = _decision(classifier, positive, path)
        # on states that are not standardised: w·(h - mean)/scale + b
        if scaler is not None and scaler.with_std:
            weight = weight / scaler.scale_
        if scaler is not None and scaler.with_mean:
            bias = bias - float(weight @ scaler.mean_)
    except (ProbeError, MissingExtra):
        raise
    except Exception as error:  # what comes out of a pickle may have any attribute, or none
        raise ProbeError(
            f"{path} holds an estimator that is not as scikit-learn fits one ({reason(error)}); fit and store it again"
        ) from error
    return LinearProbe(weight, bias, card)


def check_pickle(path: Path, allowed: bool) -> None:
    """ProbeError if reading `path`, which is a pickle, is not `allowed`."""
    if not allowed:
        raise ProbeError(
            f"{path} is a pickle, and reading a pickle runs whatever code is in it; if you trust its source, "
            "say so with --allow-pickle (allow_pickle=True)"
        )


def _load(path: Path) -> Any:
    joblib = require("joblib", extra="fit")
    exceptions = require("sklearn.exceptions", extra="fit")
    if not path.is_file():
        raise ProbeError(f"there is no file {path}")
    try:
        with warnings.catch_warnings():
            # harmless here: coefficients are read, no method of an estimator of another version is called
            warnings.simplefilter("ignore", exceptions.InconsistentVersionWarning)
            return joblib.load(path)
    except Exception as error:  # a pickle can fail in any way
        raise ProbeError(
            f"{path} is not a joblib file that can be read here ({reason(error)}); fetch or store it again"
        ) from error


def _parts(model: Any, path: Path) -> tuple[Any | None, Any]:
    """The scaler, if there is one, and the classifier."""
    linear_model = require("sklearn.linear_model", extra="fit")
    pipeline = require("sklearn.pipeline", extra="fit")
    preprocessing = require("sklearn.preprocessing", extra="fit")
    steps = [step for _, step in model.steps] if isinstance(model, pipeline.Pipeline) else [model]
    kinds = [type(step).__name__ for step in steps]
    scaler = steps[0] if len(steps) == 2 and isinstance(steps[0], preprocessing.StandardScaler) else None
    if not isinstance(steps[-1], linear_model.LogisticRegression) or len(steps) != (1 if scaler is None else 2):
        raise ProbeError(
            f"{path} holds {' -> '.join(kinds) or 'nothing'}; only LogisticRegression and "
            "StandardScaler -> LogisticRegression can be imported"
        )
    return scaler, steps[-1]


def _decision(classifier: Any, positive: float | str, path: Path) -> tuple[np.ndarray, float]:
    """Weight and bias whose sigmoid is the probability of `positive`."""
    classes = getattr(classifier, "classes_", np.array([])).tolist()
    if len(classes) != 2:
        raise ProbeError(f"{path} has the classes {classes}; a probe tells two apart")
    if positive not in classes:
        raise ProbeError(f"{path} has the classes {classes}, not {positive!r}; say which one is the harmful one")
    sign = 1.0 if positive == classes[1] else -1.0  # scikit-learn's decision is that of the second class
    weight = np.asarray(classifier.coef_, dtype=np.float64)
    if weight.ndim != 2 or len(weight) != 1:
        raise ProbeError(f"{path} has coefficients of the shape {weight.shape}, not (1, hidden size)")
    return sign * weight[0], sign * float(np.ravel(classifier.intercept_)[0])
