"""Compare what a probe says of the same answers before and after a model's weights are altered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anydepth.backends.altered_weights import Alteration
from anydepth.detectors import LinearProbe
from anydepth.errors import ConfigError
from anydepth.intervals import Rate, separation
from anydepth.probes.fitting.prompt_draws import drawn_auroc, drawn_share, draws, interval_of
from anydepth.types import ScanResult

SIDES = ("harmful", "benign")


@dataclass(frozen=True, slots=True)
class DriftReading:
    """What the checks of one answer came to.

    Attributes:
        id: The answer's own id.
        group: The set that it is of.
        label: `harmful` or `benign`.
        prompt: Key of its prompt.
        host: Key of the prompt whose request is read; the same one unless it was put under another request.
        scores: Score of each check, in [0, 1].
        peak: Largest value of the policy's statistic over the checks.
        halted: Whether the guard would have halted it.
    """

    id: str
    group: str
    label: str
    prompt: str
    host: str
    scores: tuple[float, ...]
    peak: float
    halted: bool

    @classmethod
    def of(cls, result: ScanResult, **about: str) -> "DriftReading":
        """The reading of a scan; `about` are the other fields. ConfigError if a check failed."""
        for check in result.checks:
            if check.error is not None:
                raise ConfigError(f"answer {about['id']!r}: the check at depth {check.depth} failed: {check.error}")
        return cls(
            **about,
            scores=tuple(check.score for check in result.checks),
            peak=max(check.statistic for check in result.checks),
            halted=result.verdict.halt,
        )


@dataclass(frozen=True)
class DriftComparison:
    """The same answers before and after, in one order.

    Raises:
        ConfigError: They are not the same answers, or there are none of one label.
    """

    before: Sequence[DriftReading]
    after: Sequence[DriftReading]

    def __post_init__(self) -> None:
        one, other = ([(each.id, each.group, len(each.scores)) for each in side] for side in (self.before, self.after))
        if one != other:
            raise ConfigError(
                f"the {len(one)} answers before and the {len(other)} after are not the same, or were read at other "
                "depths; scan the same answers with one tokenizer and one schedule"
            )
        if lacking := [side for side in SIDES if not any(each.label == side for each in self.before)]:
            raise ConfigError(f"there are no {lacking[0]} answers; give answers of both labels")

    def record(self, found: Alteration) -> dict[str, Any]:
        """The drift record of a probe's card, for weights that are altered in the way that was `found`.

        Returns:
            `weights`, `kind`; `answers`, `checks`; `verdicts_changed`, a rate; `score_difference`, `mean` and `largest`
            over the checks; `sides` and `sets`: for each label and set the answers, how many were halted `before` and
            after, and the paired `difference` of the shares with its 95 % `interval` over prompts.
        """
        one, other = (np.concatenate([each.scores for each in side]) for side in self._both())
        differences = np.abs(other - one)
        changed = sum(old.halted != new.halted for old, new in zip(*self._both(), strict=True))
        return {
            "weights": str(found),
            "kind": found.kind,
            "answers": len(self.before),
            "checks": len(differences),
            "verdicts_changed": Rate.of(changed, len(self.before)).record(),
            "score_difference": {"mean": float(differences.mean()), "largest": float(differences.max())},
            "sides": {side: self.halted(self._where(label=side)) for side in SIDES},
            "sets": {name: self.halted(self._where(group=name)) for name in self.groups},
        }

    @property
    def groups(self) -> tuple[str, ...]:
        """The sets, in their order."""
        return tuple(dict.fromkeys(each.group for each in self.before))

    def halted(self, places: np.ndarray) -> dict[str, Any]:
        """Answers at `places` that were halted before and after, and the paired difference with its interval."""
        one, other = (np.array([each.halted for each in side])[places] for side in self._both())
        (drawn,) = self._draws(places)
        return {
            "answers": len(one),
            "before": int(one.sum()),
            "halted": int(other.sum()),
            "difference": float(other.mean() - one.mean()),
            "interval": interval_of(drawn_share(other, drawn) - drawn_share(one, drawn)).record(),
        }

    def auroc(self, harmful: str, benign: str) -> dict[str, Any]:
        """AUROC of the peaks of two sets before and after, and the paired difference, each with its interval."""
        places = [self._where(group=name) for name in (harmful, benign)]
        drawn = self._draws(*places)
        values, of_draws = [], []
        for side in self._both():
            one, other = (np.array([each.peak for each in side])[at] for at in places)
            values.append(float(separation(one, other)))
            of_draws.append(drawn_auroc(one, other, drawn))
        return {
            "before": {"auroc": values[0], "interval": interval_of(of_draws[0]).record()},
            "after": {"auroc": values[1], "interval": interval_of(of_draws[1]).record()},
            "difference": values[1] - values[0],
            "interval": interval_of(of_draws[1] - of_draws[0]).record(),
        }

    def _both(self) -> tuple[Sequence[DriftReading], Sequence[DriftReading]]:
        return self.before, self.after

    def _where(self, **wanted: str) -> np.ndarray:
        return np.flatnonzero([all(getattr(each, k) == v for k, v in wanted.items()) for each in self.before])

    def _draws(self, *places: np.ndarray) -> list[np.ndarray]:
        keys = (np.array([getattr(each, name) for each in self.before]) for name in ("prompt", "host"))
        prompts, hosts = ([of[at] for at in places] for of in keys)
        return draws(prompts, hosts)


def with_drift(probe: LinearProbe, records: Sequence[Mapping[str, Any]]) -> LinearProbe:
    """The probe with these drift records in its card; one of the same weights is replaced."""
    new = {str(each["weights"]): each for each in (*probe.card.drift, *records)}
    return probe.with_card(replace(probe.card, drift=tuple(new.values())))
