"""Make figures of records, with bootstrap intervals over answers."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from anydepth import intervals
from anydepth.evals.figure import Figure, Group

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
    values: Sequence[float],
    of: Callable[..., Any],
    unit: str,
    group: Group | None = None,
    *,
    seed: int = 0,
    **facts: Any,
) -> Figure:
    """Any statistic `of(array, axis=)` over answers, with its percentile bootstrap interval; None of no values."""
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        return Figure(name, None, None, 0, unit, group or {}, **facts)
    rng = np.random.default_rng(seed)
    drawn = of(array[rng.integers(len(array), size=(RESAMPLES, len(array)))], axis=1)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Figure(name, float(of(array, axis=0)), (float(low), float(high)), len(array), unit, group or {}, **facts)


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
    levels = np.unique(np.concatenate([harmful, benign]))[::-1]
    above, below = np.asarray(harmful), np.asarray(benign)
    return [(0.0, 0.0), *((float((below >= level).mean()), float((above >= level).mean())) for level in levels)]
