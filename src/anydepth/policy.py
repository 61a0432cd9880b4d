"""Turn the sequence of scores of one answer into a halt.

Every policy is a statistic over the scores so far and a threshold on it: that one number per answer (its largest value)
is what calibration works on.

Every policy takes `request`, the weight of the score at depth 0, in (0, 1]. That check has seen the request alone. With
a weight it is judged by itself, by its weighted score, and the statistic of the later checks begins with the answer's
first. Without one (the default) depth 0 is a check like any other, and a statistic that averages carries the request's
score into the answer.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any, Protocol

from anydepth.errors import ConfigError


class Policy(Protocol):
    """A running statistic of the scores of one answer; the answer halts when it reaches the threshold."""

    @property
    def threshold(self) -> float:
        """The value of the statistic at which an answer halts."""
        ...

    def statistic(self, scores: Sequence[float]) -> list[float]:
        """The statistic after each score, same length as `scores` (oldest first)."""
        ...


def _within(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and low <= value <= high  # NaN is in no range


def _require(condition: bool, name: str, value: object, rule: str) -> None:
    if not condition:
        raise ConfigError(f"{name} is {value!r}; it must be {rule}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _OverChecks(ABC):
    """What the policies share: how the first score counts, which is that of depth 0.

    Attributes:
        request: Its weight in (0, 1], or None; see the module.
    """

    request: float | None = None

    def __post_init__(self) -> None:
        _require(
            self.request is None or (_within(self.request, 0, 1) and self.request > 0),
            "request",
            self.request,
            "in (0, 1], or be left out",
        )

    def statistic(self, scores: Sequence[float]) -> list[float]:
        """The statistic after each score, same length as `scores` (oldest first)."""
        if self.request is None or not scores:
            return self._statistic(scores)
        return [self.request * scores[0], *self._statistic(scores[1:])]

    @abstractmethod
    def _statistic(self, scores: Sequence[float]) -> list[float]: ...


@dataclass(frozen=True, slots=True)
class Threshold(_OverChecks):
    """Halt at the first score that reaches `threshold` (the paper's rule, with 0.5)."""

    threshold: float = 0.5

    def __post_init__(self) -> None:
        _OverChecks.__post_init__(self)
        _require(_within(self.threshold, 0, 1), "threshold", self.threshold, "in [0, 1]")

    def _statistic(self, scores: Sequence[float]) -> list[float]:
        return list(scores)


@dataclass(frozen=True, slots=True)
class KofN(_OverChecks):
    """Halt when `k` of the last `n` scores reach `threshold`; the statistic is the k-th largest of the last n.

    It is 0 while there are fewer than k scores.
    """

    k: int = 2
    n: int = 3
    threshold: float = 0.5

    def __post_init__(self) -> None:
        _OverChecks.__post_init__(self)
        _require(_within(self.threshold, 0, 1), "threshold", self.threshold, "in [0, 1]")
        _require(isinstance(self.k, int) and self.k >= 1, "k", self.k, "a whole number of at least 1")
        _require(isinstance(self.n, int) and self.n >= self.k, "n", self.n, f"a whole number of at least k ({self.k})")

    def _statistic(self, scores: Sequence[float]) -> list[float]:
        ends = range(1, len(scores) + 1)
        largest = (sorted(scores[max(0, end - self.n) : end], reverse=True)[: self.k] for end in ends)
        return [last[-1] if len(last) == self.k else 0.0 for last in largest]


@dataclass(frozen=True, slots=True)
class Ewma(_OverChecks):
    """Halt when the exponentially weighted moving average of the scores reaches `threshold`.

    `alpha` is the weight of the newest score; the average starts at the first score.
    """

    alpha: float = 0.5
    threshold: float = 0.5

    def __post_init__(self) -> None:
        _OverChecks.__post_init__(self)
        _require(_within(self.threshold, 0, 1), "threshold", self.threshold, "in [0, 1]")
        _require(_within(self.alpha, 0, 1) and self.alpha > 0, "alpha", self.alpha, "in (0, 1]")

    def _statistic(self, scores: Sequence[float]) -> list[float]:
        return list(accumulate(scores, lambda average, score: self.alpha * score + (1 - self.alpha) * average))


@dataclass(frozen=True, slots=True)
class Cusum(_OverChecks):
    """Halt when the cumulative sum of scores above `drift` reaches `threshold` (Page's one-sided CUSUM).

    The statistic after each score is max(0, S + score - drift), with S the one before.
    """

    drift: float = 0.3
    threshold: float = 0.5

    def __post_init__(self) -> None:
        _OverChecks.__post_init__(self)
        _require(_within(self.drift, 0, 1) and self.drift < 1, "drift", self.drift, "in [0, 1)")
        _require(
            _within(self.threshold, 0, math.inf) and 0 < self.threshold < math.inf,
            "threshold",
            self.threshold,
            "above 0 and finite",
        )

    def _statistic(self, scores: Sequence[float]) -> list[float]:
        return list(accumulate(scores, lambda total, score: max(0.0, total + score - self.drift), initial=0.0))[1:]


POLICIES: Mapping[str, type] = {"threshold": Threshold, "k_of_n": KofN, "ewma": Ewma, "cusum": Cusum}
"""Name in configuration files and probe artefacts -> policy."""


def policy_from(record: Mapping[str, Any]) -> Policy:
    """Build a policy from `{"name": ..., option: value}`; ConfigError names what is unknown."""
    options = dict(record)
    name = options.pop("name", None)
    if name not in POLICIES:
        raise ConfigError(f"policy is {name!r}; choose one of {', '.join(POLICIES)}")
    try:
        return POLICIES[name](**options)
    except TypeError as error:
        raise ConfigError(f"policy {name!r} does not take {sorted(options)}: {error}") from error


def policy_record(policy: Policy) -> dict[str, Any]:
    """The record that `policy_from` reads back."""
    for name, kind in POLICIES.items():
        if isinstance(policy, kind):
            options = asdict(policy)  # pyright: ignore[reportArgumentType]
            return {"name": name, **{key: value for key, value in options.items() if value is not None}}
    raise ConfigError(f"policy {type(policy).__name__} has no name in POLICIES; register it there to store it")


def with_threshold(policy: Policy, threshold: float) -> Policy:
    """Return the same policy with another threshold; ConfigError if it cannot have it."""
    return policy_from({**policy_record(policy), "threshold": threshold})


def statistic_at(policy: Policy, depths: Sequence[int], scores: Sequence[float]) -> list[float]:
    """The statistic of `policy` after each of `scores`, which are those of the checks at `depths`, in tokens.

    Where depth 0 is not among them (its check failed, or the answer is judged from a later one on), no score is
    weighted as the request's (`request`).
    """
    return (unweighted(policy) if depths and depths[0] > 0 else policy).statistic(scores)


def unweighted(policy: Policy) -> Policy:
    """Return the policy without a weight of the request (`request`): what judges a request that no answer follows."""
    return replace(policy, request=None) if isinstance(policy, _OverChecks) else policy
