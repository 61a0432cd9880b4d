"""Measure a probe on answers that it was not fitted on."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from anydepth.errors import StoreError
from anydepth.intervals import Interval, Rate, auroc
from anydepth.policy import Policy
from anydepth.probes.fitting.calibrate import Calibration, Trail, calibrate, first_halt, peak
from anydepth.probes.fitting.fit import Fitted
from anydepth.probes.fitting.operating import from_prefill, operating_point
from anydepth.probes.recipe.pairs import Pair
from anydepth.probes.states.store import Checks

PREFILLS: tuple[int | None, ...] = (50, 100, 200, 400, None)
"""Prefill depths of the report; None is the whole answer."""


def trails(checks: Checks, logits: np.ndarray, splits: Sequence[str], label: str | None = None) -> list[Trail]:
    """The scored answers of some splits, in order of their digests, from `logits`, float `[checks]`.

    Raises:
        StoreError: The splits have no answer of this label.
    """
    rows = np.flatnonzero(np.isin(checks["split"], list(splits)) & ((label is None) | (checks["label"] == label)))
    if not len(rows):
        raise StoreError(
            f"there are no answers of {', '.join(splits)}{f' that are {label}' if label else ''} in this half or in "
            "all; hold out answers to more prompts, of both labels"
        )
    rows = rows[np.lexsort((checks["depth"][rows], checks["answer"][rows]))]
    scores = np.exp(-np.logaddexp(0.0, -logits[rows].astype(np.float64)))
    begins = np.flatnonzero(np.r_[True, checks["answer"][rows][1:] != checks["answer"][rows][:-1]])
    found = []
    for begin, end in zip(begins, [*begins[1:], len(rows)], strict=True):
        first = rows[begin]
        depths = tuple(checks["depth"][rows[begin:end]].tolist())
        found.append(Trail(str(checks["id"][first]), str(checks["source"][first]), depths, tuple(scores[begin:end])))
    return found


def separation(
    checks: Checks, logits: np.ndarray, pair: Pair, policy: Policy, *, forced: bool = False, resamples: int = 1000
) -> tuple[float, Interval]:
    """Response-level AUROC of `pair`, with its interval: of the largest statistic of each whole answer.

    `logits` are float `[checks]`. With `forced` the harmful answers are prefills: the policy sees depth 0 and the end
    of the answer, nothing between.
    """
    seen = [each.scores for each in trails(checks, logits, pair.harmful, "harmful")]
    harmful = [peak(policy, (scores[0], scores[-1]) if forced else scores) for scores in seen]
    benign = [peak(policy, each.scores) for each in trails(checks, logits, pair.benign, "benign")]
    return auroc(harmful, benign, seed=0, resamples=resamples)


def thresholds(
    checks: Checks, logits: np.ndarray, policy: Policy, splits: Sequence[str], *, target: float, data: str
) -> Calibration:
    """Calibrate `policy` on the benign answers of `splits`; `logits` are float `[checks]`."""
    return calibrate(policy, trails(checks, logits, splits, "benign"), target=target, data=data)


def table(checks: Checks, fitted: Fitted, pairs: Sequence[Pair], policy: Policy) -> dict[str, Any]:
    """The figures of a probe: separation of every pair, and what is halted at the policy's threshold."""
    logits = fitted.logits(checks.states)
    figures: dict[str, Any] = {"separation": {}, "halted": {}, "prefill": {}}
    for pair in pairs:
        value, interval = separation(checks, logits, pair, policy)
        figures["separation"][pair.name] = {"auroc": value, "interval": interval.record()}
    for name in dict.fromkeys(name for pair in pairs for name in pair.harmful):
        found = trails(checks, logits, (name,), "harmful")
        figures["halted"][name] = operating_point(policy, found).record()
        figures["prefill"][name] = [point.record() for point in from_prefill(policy, found, PREFILLS)]
    return figures


def crossed(
    halves: Sequence[Checks], fitted: Fitted, pairs: Sequence[Pair], calibration: Calibration, splits: Sequence[str]
) -> dict[str, Any]:
    """False-positive rates with the threshold set on the benign answers of the other half, both directions together.

    `calibration` gives policy and target, `splits` the sets that thresholds are set on. Unlike the rate on the answers
    of the calibration itself, which is the target by construction, this says what to expect of other prompts.
    """
    names = tuple(dict.fromkeys(name for pair in pairs for name in pair.benign))
    logits = [fitted.logits(checks.states) for checks in halves]
    counts: dict[str, tuple[int, int]] = dict.fromkeys(names, (0, 0))
    for one, other in ((0, 1), (1, 0)):
        policy = thresholds(
            halves[one], logits[one], calibration.policy, splits, target=calibration.target, data="one half"
        ).policy
        for name in names:
            found = trails(halves[other], logits[other], (name,), "benign")
            halted = sum(first_halt(policy, trail.scores) is not None for trail in found)
            counts[name] = (counts[name][0] + halted, counts[name][1] + len(found))
    return {name: Rate.of(halted, answers).record() for name, (halted, answers) in counts.items()}
