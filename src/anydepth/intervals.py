"""Say how sure a figure is: exact intervals of rates, bootstrap intervals of AUROC."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from anydepth.errors import ConfigError
from anydepth.extras import require


@dataclass(frozen=True, slots=True)
class Interval:
    """A range that holds the true value with the confidence it was made for."""

    low: float
    high: float

    def record(self) -> list[float]:
        """JSON-ready form, `[low, high]`."""
        return [self.low, self.high]


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of answers, with its exact interval.

    Attributes:
        answers: Answers in all.
        halted: Those that were halted.
        interval: Clopper-Pearson interval of the rate.
    """

    answers: int
    halted: int
    interval: Interval

    @classmethod
    def of(cls, halted: int, answers: int, confidence: float = 0.95) -> "Rate":
        """The rate of `halted` among `answers`."""
        return cls(answers, halted, clopper_pearson(halted, answers, confidence))

    @property
    def rate(self) -> float:
        """The share itself; NaN of no answers."""
        return self.halted / self.answers if self.answers else math.nan

    def record(self) -> dict[str, Any]:
        """JSON-ready form; a rate of no answers is null."""
        return {
            "answers": self.answers,
            "halted": self.halted,
            "rate": self.rate if self.answers else None,
            "interval": self.interval.record(),
        }


def clopper_pearson(
    successes: int, trials: int, confidence: float = 0.95, *, alternative: Literal["two-sided", "less"] = "two-sided"
) -> Interval:
    """The exact interval of a rate (Clopper and Pearson, 1934), two-sided or with an upper end only (`less`).

    Of no trials it is [0, 1].

    Raises:
        ConfigError: `confidence` is not between 0 and 1, or `successes` not between 0 and `trials`.
        MissingExtra: scipy is not installed.
    """
    check_share("confidence", confidence)
    if not 0 <= successes <= trials:
        raise ConfigError(f"{successes} of {trials} is no rate; the first must lie between 0 and the second")
    if trials == 0:
        return Interval(0.0, 1.0)
    stats = require("scipy.stats", extra="fit")
    found = stats.binomtest(successes, trials, alternative=alternative).proportion_ci(confidence, method="exact")
    return Interval(float(found.low), float(found.high))


def upper_bound(successes: int, trials: int, confidence: float = 0.95) -> float:
    """The exact one-sided upper bound of a rate: the truth lies above it with probability 1 - `confidence` at most."""
    return clopper_pearson(successes, trials, confidence, alternative="less").high


def answers_needed(target: float, confidence: float = 0.95) -> int:
    """Answers, none of them halted, from which on the upper bound of the rate is at most `target`."""
    check_share("target", target)
    check_share("confidence", confidence)
    count = max(1, math.ceil(math.log1p(-confidence) / math.log1p(-target)) - 1)  # rounding may be off by one
    while upper_bound(0, count, confidence) > target:
        count += 1
    return count


def auroc(
    harmful: Sequence[float] | np.ndarray,
    benign: Sequence[float] | np.ndarray,
    *,
    seed: int,
    resamples: int = 1000,
) -> tuple[float, Interval]:
    """Probability that a harmful answer scores above a benign one (a tie counts half), with its 95 % interval.

    Answers are drawn anew within each class (bootstrap); the interval is that of the percentiles. Where the classes do
    not overlap it is [1, 1] whatever their number: then say how many answers there were. Both classes are float
    `[answers]`.

    Raises:
        ConfigError: A class is empty or holds a value that is NaN, or an option has a value it cannot have.
    """
    if resamples < 2:
        raise ConfigError(f"resamples is {resamples}; give a whole number of at least 2")
    classes = _values("harmful", harmful), _values("benign", benign)
    interval = bootstrap(classes, separation, seed=seed, resamples=resamples)
    return float(separation(*classes)), interval


def separation(harmful: np.ndarray, benign: np.ndarray, axis: int = -1) -> np.ndarray:
    """AUROC from the ranks of the harmful scores: `[..., harmful]`, `[..., benign]` -> `[...]`; a tie counts half."""
    stats = require("scipy.stats", extra="fit")
    count, other = harmful.shape[axis], benign.shape[axis]
    ranks = stats.rankdata(np.concatenate([harmful, benign], axis), axis=axis)[..., :count].sum(axis)
    return (ranks - count * (count + 1) / 2) / (count * other)


def bootstrap(
    samples: Iterable[np.ndarray], statistic: Callable[..., Any], *, seed: int = 0, resamples: int, **options: Any
) -> Interval:
    """The percentile bootstrap interval of `statistic(*samples, axis=-1)`, samples `[answers]`; see scipy."""
    stats = require("scipy.stats", extra="fit")
    data = [sample.repeat(2) if len(sample) == 1 else sample for sample in samples]  # of one value scipy draws nothing
    batch = max(1, 4_000_000 // sum(map(len, data)))  # bounds the memory of one draw
    options = {"n_resamples": resamples, "batch": batch, "vectorized": True, "method": "percentile", **options}
    found = stats.bootstrap(data, statistic, rng=seed, **options).confidence_interval
    return Interval(float(found.low), float(found.high))


def check_share(name: str, value: float) -> float:
    """Return `value` if it lies between 0 and 1; ConfigError if not."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ConfigError(f"{name} is {value!r}; it must lie between 0 and 1, e.g. 0.005 for half a percent")
    return value


def percent(share: float | None) -> str:
    """A share for people: `0.5 %`; of no answers it is `–`."""
    return "–" if share is None else f"{100 * share:.3g} %"


def percent_range(interval: Sequence[float] | None) -> str:
    """An interval's record for people: `[0.2, 2.9] %`; nothing for None."""
    return f"[{100 * interval[0]:.3g}, {100 * interval[1]:.3g}] %" if interval else ""


def _values(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or np.isnan(array).any():
        raise ConfigError(
            f"the {name} scores have the shape {array.shape}, NaN included or not; give at least one number"
        )
    return array
