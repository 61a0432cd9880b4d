"""Fit a linear probe on collected states."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from anydepth.errors import ConfigError, StoreError
from anydepth.extras import require
from anydepth.probes.fitting.check_labels import LEFT_OUT, training_labels, weighed_sources
from anydepth.probes.fitting.prompt_draws import draws
from anydepth.probes.states.store import Checks

Balance = Literal["label", "source", "depth"]
Method = Literal["logistic", "mass-mean"]

_DEPTH_RANGES = (0, 8, 25, 50, 100, 200, 400)
_AT_ONCE = 4096
_FOLDS = 5


@dataclass(frozen=True, slots=True)
class FitOptions:
    """Options of a fit.

    Attributes:
        strength: Inverse regularisation of the logistic regression (scikit-learn's `C`), on standardised states.
        balance: What weighs the same: both labels; within a label each source too; within a source each depth too.
        first_depth: Checks at smaller depths are not trained on: there is little answer to judge.
        clean: Share of the training checks whose label is dropped as the least credible (confident learning), 0 to 1.
        bags: Fits on prompts drawn with replacement to average; 1 is a single fit on all of them. An answer under
            another request counts as often as its own prompt and that request are drawn, multiplied.
        method: `logistic`, or the baseline `mass-mean`: the direction between the means of the two labels.
        seed: Seed of the resampling.
    """

    strength: float = 0.01
    balance: Balance = "source"
    first_depth: int = 1
    clean: float = 0.0
    bags: int = 1
    method: Method = "logistic"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise ConfigError(f"strength is {self.strength}; it must be above 0, e.g. 0.01")
        if self.balance not in ("label", "source", "depth"):
            raise ConfigError(f"balance is {self.balance!r}; choose label, source or depth")
        if self.method not in ("logistic", "mass-mean"):
            raise ConfigError(f"method is {self.method!r}; choose logistic or mass-mean")
        if not 0 <= self.clean < 0.5:
            raise ConfigError(f"clean is {self.clean}; drop a share from 0 to below 0.5")
        if self.bags < 1:
            raise ConfigError(f"bags is {self.bags}; average at least 1 fit")


@dataclass(frozen=True, slots=True)
class Fitted:
    """A direction and an offset, standardisation folded in.

    Attributes:
        weight: float64 `[reads, hidden_size]`.
        bias: The offset.
        checks: Checks it was fitted on.
        dropped: Checks whose label was not believed.
    """

    weight: np.ndarray
    bias: float
    checks: int
    dropped: int = 0

    def logits(self, states: np.ndarray) -> np.ndarray:
        """w·h + b of `states` `[n, reads, hidden_size]`, float64 `[n]`."""
        # as LinearProbe scores: float32 weights, float64 sums; in pieces, so that the states are not held twice
        weight = self.weight.ravel().astype(np.float32).astype(np.float64)
        found = np.empty(len(states))
        for begin in range(0, len(states), _AT_ONCE):
            piece = states[begin : begin + _AT_ONCE]
            found[begin : begin + len(piece)] = piece.reshape(len(piece), -1).astype(np.float64) @ weight
        return found + float(np.float32(self.bias))


def fit(checks: Checks, options: FitOptions) -> Fitted:
    """Fit a probe on the labelled checks.

    Raises:
        StoreError: There are no checks of one of the labels, too few prompts for `clean` or `bags`, or the states are
            not finite or all the same.
    """
    rows, labels, weights, columns = training_checks(checks.columns, options)
    states = checks.states[rows].reshape(len(rows), -1)
    if not np.isfinite(states).all():
        raise StoreError("some of the states to fit on are not finite; collect them again with another dtype")
    if (states.max(0) == states.min(0)).all():
        raise StoreError(
            f"all {len(rows)} checks have the very same state, so nothing can be told apart by it; read at another "
            "block or token"
        )
    mean, scale = states.mean(0), states.std(0) + 1e-6
    states = (states - mean) / scale
    keep = np.ones(len(rows), bool)
    keys = columns["prompt_key"], columns.get("host_key", columns["prompt_key"])
    if options.clean:
        keep = _credible(states, labels, keys, weights, options)
    found = []
    for times in _bags(keys, options):
        drawn = keep & (times > 0)
        found.append(direction_of(states[drawn], labels[drawn], weights[drawn] * times[drawn], options))
    weight = np.mean([each for each, _ in found], axis=0) / scale
    bias = float(np.mean([offset for _, offset in found]) - weight @ mean)
    shape = (checks.states.shape[1], checks.states.shape[2])
    return Fitted(weight.reshape(shape), bias, int(keep.sum()), int((~keep).sum()))


def training_checks(
    columns: Mapping[str, np.ndarray], options: FitOptions
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Which checks are trained on, from the facts of `Checks.columns`.

    Returns:
        Their indices, int `[trained]`; whether each is harmful, bool; its weight, float64 of mean 1; and their columns,
        with the label and the source that they are trained with.

    Raises:
        StoreError: There are none of one label.
    """
    trained = training_labels(columns, options.first_depth)
    rows = np.flatnonzero(trained != LEFT_OUT)
    labels = trained[rows] == "harmful"
    if not labels.any() or labels.all():
        raise StoreError(
            f"there are {int(labels.sum())} harmful and {int((~labels).sum())} benign checks at depths from "
            f"{options.first_depth} on; a probe needs both. Collect answers of both labels"
        )
    kept = {name: column[rows] for name, column in columns.items()}
    kept |= {"source": weighed_sources(kept, trained[rows]), "label": trained[rows]}
    return rows, labels, sample_weights(kept, options.balance), kept


def sample_weights(columns: Mapping[str, np.ndarray], balance: Balance) -> np.ndarray:
    """A weight per check, float64 `[checks]` of mean 1, from the facts of `Checks.columns`.

    Both labels weigh the same, and within them what `balance` says. Where there is a column `weight`, each check counts
    so many times beside the others of its label.
    """
    levels = {"label": ("label",), "source": ("label", "source"), "depth": ("label", "source", "depth")}[balance]
    keys = [np.searchsorted(_DEPTH_RANGES, columns[name]) if name == "depth" else columns[name] for name in levels]
    groups = list(zip(*(key.tolist() for key in keys), strict=True))
    size = Counter(groups)
    branches = {group[: level + 1] for group in size for level in range(len(levels))}
    children = Counter(branch[:-1] for branch in branches)
    share = {group: 1 / math.prod(children[group[:level]] for level in range(len(levels))) for group in size}
    weights = np.array([share[group] / size[group] for group in groups])
    if "weight" in columns:
        weights = _times(weights, columns["weight"], columns["label"])
    return weights * len(weights)


def _times(weights: np.ndarray, factor: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The weights times `factor`, float64 `[checks]`; the sum of each label stays."""
    found = weights * factor
    for each in np.unique(label):
        of_label = label == each
        found[of_label] *= weights[of_label].sum() / found[of_label].sum()
    return found


def direction_of(
    states: np.ndarray, labels: np.ndarray, weights: np.ndarray, options: FitOptions
) -> tuple[np.ndarray, float]:
    """Direction and offset on standardised states."""
    if not labels.any() or labels.all():
        raise StoreError(
            "a part of the training checks (a fold of `clean`, or a bag) has answers of one label only; collect "
            "answers to more prompts, or use neither clean nor bags"
        )
    linear_model = require("sklearn.linear_model", extra="fit")
    if options.method == "mass-mean":
        means = [np.average(states[labels == label], axis=0, weights=weights[labels == label]) for label in (1, 0)]
        direction = means[0] - means[1]
        projected = (states @ direction)[:, None]
        line = linear_model.LogisticRegression(C=1e3).fit(projected, labels, sample_weight=weights)
        return line.coef_[0, 0] * direction, float(line.intercept_[0])
    model = linear_model.LogisticRegression(C=options.strength, max_iter=500)
    model.fit(states, labels, sample_weight=weights)
    return model.coef_[0].astype(np.float64), float(model.intercept_[0])


def _credible(
    states: np.ndarray,
    labels: np.ndarray,
    keys: tuple[np.ndarray, np.ndarray],
    weights: np.ndarray,
    options: FitOptions,
) -> np.ndarray:
    """Mask of the checks that are kept: the share `clean` with the least self-confidence out of sample is dropped.

    Confident learning (Northcutt et al., 2021) with cleanlab. A fold is judged by a fit on checks
    that share no prompt with it: neither the answer's own nor the one that it was put under (`keys`, str `[checks]`).
    """
    prompts, hosts = keys
    selection: Any = require("sklearn.model_selection", extra="fit")
    rank: Any = require("cleanlab.rank", extra="fit")
    folds = min(_FOLDS, len(np.unique(prompts)))
    if folds < 2:
        raise StoreError("clean needs answers to at least 2 prompts; collect more, or leave it out")
    probability = np.empty(len(labels))
    for others, test in selection.GroupKFold(n_splits=folds).split(states, labels, prompts):
        judged = np.concatenate([prompts[test], hosts[test]])
        train = others[~np.isin(prompts[others], judged) & ~np.isin(hosts[others], judged)]
        direction, offset = direction_of(states[train], labels[train], weights[train], options)
        probability[test] = 1 / (1 + np.exp(-(states[test] @ direction + offset)))
    both = np.stack([1 - probability, probability], 1)
    quality = rank.get_label_quality_scores(labels.astype(int), both, method="self_confidence")
    return quality > np.quantile(quality, options.clean)


def _bags(keys: tuple[np.ndarray, np.ndarray], options: FitOptions) -> np.ndarray:
    """How often each check counts in each bag, float32 `[bags, checks]`, by the `keys` of its prompt and its host."""
    if options.bags == 1:
        return np.ones((1, len(keys[0])), np.float32)
    prompts, hosts = keys
    return draws([prompts], [hosts], seed=options.seed, resamples=options.bags)[0]
