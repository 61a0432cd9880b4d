"""Refit a probe without one training source after the other, to see what it does to a source that it never saw."""

from collections.abc import Callable
from typing import Any

import numpy as np

from anydepth.errors import StoreError
from anydepth.probes.fitting.candidates import Trial
from anydepth.probes.fitting.fit import Fitted, fit
from anydepth.probes.fitting.measure import keys_of, rows_by_answer, trails
from anydepth.probes.fitting.prompt_draws import auroc_with_interval
from anydepth.probes.fitting.stretch_halts import stretch_halt
from anydepth.probes.states.store import Checks


def without_each_source(
    train: Checks, held_out: Checks, trial: Trial, *, progress: Callable[[int, int], None] | None = None
) -> dict[str, dict[str, Any]]:
    """Training source -> how the candidate tells its answers apart when it is fitted without them, JSON-ready.

    The refit sees neither the source's answers, nor answers that were put under its requests or behind its text, nor
    others that share a prompt with any of the source's, be it their own or the one that they were put under. Where a
    source has answers of one label only, they are compared with the `held_out` answers of other sources that have the
    other label.

    Args:
        train: The training checks.
        held_out: Held-out checks that no choice was made on.
        trial: What was chosen: options and policy.
        progress: Called after each source with (sources done, sources in all).

    Returns:
        `auroc` with its 95 % `interval`, the number of `harmful` and `benign` answers, and `against`: `its own`, or
        `other sources, held out`. Where it cannot be said, `auroc` is None and `why` says what is missing.
    """
    found: dict[str, dict[str, Any]] = {}
    sources = np.unique(train["source"]).tolist()
    for source in sources:
        mine = train["source"] == source
        keys = np.unique([*train["prompt_key"][mine], *train.host_keys[mine]])
        seen = np.isin(train["prompt_key"], keys) | np.isin(train.host_keys, keys) | _hosted_by(train, source)
        try:
            fitted = fit(train.where(~seen & ~mine), trial.candidate.options)
            apart = held_out.where((held_out["source"] != source) & ~_hosted_by(held_out, source))
            found[source] = _told_apart(train.where(mine), apart, fitted, trial)
        except StoreError as error:
            found[source] = {"auroc": None, "interval": None, "why": str(error)}
        if progress is not None:
            progress(len(found), len(sources))
    return found


def _hosted_by(checks: Checks, source: str) -> np.ndarray:
    """Mask of the checks, bool `[checks]`, of answers that were put under conversations of `source`."""
    return checks.columns.get("host_source", checks["source"]) == source


def _told_apart(own: Checks, apart: Checks, fitted: Fitted, trial: Trial) -> dict[str, Any]:
    peaks, keys, against = {}, {}, "its own"
    for label in ("harmful", "benign"):
        checks = own
        if not (own["label"] == label).any():
            checks, against = apart, "other sources, held out"
        splits = np.unique(checks["split"]).tolist()
        answers = trails(checks, fitted.logits(checks.states), splits, label)
        peaks[label] = np.array([stretch_halt(trial.policy, each).peak for each in answers])
        keys[label] = keys_of(checks, rows_by_answer(checks, splits, label))
    value, interval = auroc_with_interval(peaks["harmful"], peaks["benign"], keys["harmful"], keys["benign"])
    counts = {label: len(values) for label, values in peaks.items()}
    return {"auroc": value, "interval": interval.record(), **counts, "against": against}
