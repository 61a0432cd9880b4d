"""Make figures of records, with bootstrap intervals over answers."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from anydepth import intervals
from anydepth.evals.figure import Figure, Group
from anydepth.extras import require

RESAMPLES = 2000
CONFIDENCE = 0.95


def share(name: str, values: Sequence[bool], group: Group | None = None, **facts: Any) -> Figure:
    """Share of answers for which something is so.

    The interval is Clopper and Pearson's: exact, and honest at 0 and 100 %, where a bootstrap has no width.
    """
    hits = sum(map(bool, values))
    exact = intervals.clopper_pearson(hits, len(values), CONFIDENCE)
    value = hits / len(values) if len(values) else None
    return Figure(name, value, (exact.low, exact.high), len(values), "share", group or {}, **facts)


def average(name: str, values: Sequence[float], unit: str, group: Group | None = None, **facts: Any) -> Figure:
    """Mean over answers, with a bootstrap interval."""
    return statistic(name, values, np.mean, unit, group, **facts)


def median(name: str, values: Sequence[float], unit: str, group: Group | None = None, **facts: Any) -> Figure:
    """Median over answers, with a bootstrap interval."""
    return statistic(name, values, np.median, unit, group, **facts)


def statistic(
    name: str,
    values: Sequence[float] | Sequence[Sequence[float]],
    of: Callable[..., Any],
    unit: str,
    group: Group | None = None,
    **facts: Any,
) -> Figure:
    """Any statistic `of(array, axis=)` over answers, with its percentile bootstrap interval; None of no values.

    Where each of the `values` is a row of numbers of one answer, it is `of(*columns, axis=)`.
    """
    columns = np.atleast_2d(np.asarray(values, dtype=np.float64).T)
    if not columns.size:
        return Figure(name, None, None, 0, unit, group or {}, **facts)
    found = intervals.bootstrap(columns, of, resamples=RESAMPLES, confidence_level=CONFIDENCE, paired=len(columns) > 1)
    value = float(of(*columns, axis=-1))
    return Figure(name, value, (found.low, found.high), columns.shape[1], unit, group or {}, **facts)


def auroc(
    name: str, harmful: Sequence[float], benign: Sequence[float], group: Group | None = None, **facts: Any
) -> Figure:
    """Probability that a harmful answer scores above a benign one, with a bootstrap interval over answers."""
    if not len(harmful) or not len(benign):
        return Figure(name, None, None, 0, "auroc", group or {}, **facts)
    value, found = intervals.auroc(harmful, benign, seed=0, resamples=RESAMPLES)
    return Figure(name, value, (found.low, found.high), len(harmful) + len(benign), "auroc", group or {}, **facts)


def difference(
    name: str, after: Sequence[float], before: Sequence[float], unit: str, group: Group | None = None
) -> Figure:
    """Mean of `after - before` over the same answers, with a paired bootstrap interval."""
    return average(name, (np.asarray(after, np.float64) - np.asarray(before, np.float64)).tolist(), unit, group)


def roc(harmful: Sequence[float], benign: Sequence[float]) -> list[tuple[float, float]]:
    """Points (false-positive rate, true-positive rate) of the ROC curve, from (0, 0) to (1, 1)."""
    curve = require("sklearn.metrics", extra="fit").roc_curve
    labels = np.repeat([1, 0], [len(harmful), len(benign)])
    false, true, _ = curve(labels, np.concatenate([harmful, benign]), drop_intermediate=False)
    return list(zip(false.tolist(), true.tolist(), strict=True))
