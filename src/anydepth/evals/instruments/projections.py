"""Show states of many dimensions in two."""

from typing import Any

import numpy as np

from anydepth.extras import require


def principal(states: np.ndarray) -> tuple[np.ndarray, float]:
    """The two directions along which standardised states `[n, hidden_size]` differ most, and their share of that.

    Labels are not used: what separates here separates without a probe.
    """
    decomposition: Any = require("sklearn.decomposition", extra="fit")
    model = decomposition.PCA(2, svd_solver="full")
    points = model.fit_transform(_standard(states))
    return points, float(model.explained_variance_ratio_.sum())


def discriminant(states: np.ndarray, harmful: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Each state along the line that tells labels apart best, and along the first principal direction, `[n, 2]`.

    The line (linear discriminant analysis, shrunk covariance) is fitted on the other folds: with more dimensions than
    answers, those that it was fitted on would come apart whatever they were.
    """
    analysis: Any = require("sklearn.discriminant_analysis", extra="fit")
    standard = _standard(states)
    along = np.empty(len(states))
    for fold in np.unique(folds):
        held = folds == fold
        model = analysis.LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        along[held] = model.fit(standard[~held], harmful[~held]).decision_function(standard[held])
    return np.stack([along, principal(states)[0][:, 0]], 1)


def _standard(states: np.ndarray) -> np.ndarray:
    wide = states.astype(np.float64)
    return (wide - wide.mean(0)) / (wide.std(0) + 1e-6)
