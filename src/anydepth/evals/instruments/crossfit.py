"""Score answers with small linear probes that have seen none of their prompts."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from anydepth import intervals
from anydepth.backends.protocol import Site
from anydepth.conversations.dataset import Conversation
from anydepth.errors import TemplateError, UnsupportedModel
from anydepth.evals import estimates
from anydepth.evals.figure import Figure, Group
from anydepth.extras import require
from anydepth.probes.fitting.fit import FitOptions, fit
from anydepth.probes.states.collect import Collected, collect_into
from anydepth.probes.states.control_suffix import suffix_ids
from anydepth.probes.states.plan import CollectPlan
from anydepth.probes.states.store import Checks, StateStore
from anydepth.schedule import Listed

if TYPE_CHECKING:
    from anydepth.evals.context import Context

FOLDS = 5
DEALS = 10
"""How often labels are dealt out anew."""

FEWEST = 10
"""Answers of each label below which no probe is fitted and no figure given."""

END = "end"
"""Among depths: the last token of the answer that was read."""

Depth = int | str
Scores = Mapping[str, Mapping[int, float]]
"""Answer -> depth -> logit."""


@dataclass(frozen=True, slots=True)
class View:
    """What is read at a check.

    Attributes:
        name: What to call it in figures.
        suffix: What is appended: `header`, or a control.
        token: Which token of it is read, -1 for the last one before it.
    """

    name: str
    suffix: str
    token: int


@dataclass
class Crossfit:
    """The answers of a suite, and what probes of the other folds make of their states.

    Attributes:
        context: The suite's; every score is a record, so that a killed run goes on.
        answers: Answer key -> labelled answer, cross-validated by prompt.
        held_out: Name of a set -> answers that no probe is ever fitted on.
        sites: Where to read.
        depths: Where to check, beside 0 and the end.
        longest: Tokens of an answer to read at most.
    """

    context: "Context"
    answers: Mapping[str, Conversation]
    held_out: Mapping[str, Mapping[str, Conversation]]
    sites: tuple[Site, ...]
    depths: tuple[int, ...]
    longest: int
    _stores: dict[str, tuple[StateStore, Collected]] = field(default_factory=dict)
    _read: tuple[tuple[View, Site], Checks] | None = None

    @cached_property
    def folds(self) -> dict[str, int]:
        """Answer -> its fold; answers to one prompt share it, and each fold has both labels."""
        selection: Any = require("sklearn.model_selection", extra="fit")
        keys = sorted(self.answers)
        labels = np.array([self.answers[key].label for key in keys])
        prompts = [self.answers[key].prompt_key for key in keys]
        splitter = selection.StratifiedGroupKFold(FOLDS, shuffle=True, random_state=self.context.options.seed)
        found: dict[str, int] = {}
        for fold, (_, test) in enumerate(splitter.split(np.zeros(len(keys)), labels, prompts)):
            found |= {keys[place]: fold for place in test}
        return found

    def label(self, key: str) -> str:
        """`harmful` or `benign`."""
        for group in (self.answers, *self.held_out.values()):
            if key in group:
                return group[key].label or ""
        raise KeyError(key)

    def control_token(self, suffix: str) -> int:
        """The token that is read of a control: its last."""
        return len(suffix_ids(self.context.backend, suffix)) - 1

    # -- scores --------------------------------------------------------------------------------------------------------

    def scores(self, view: View, site: Site, depth: Depth | None = None) -> Scores:
        """Each check's logit by a probe that has not seen its prompt.

        Args:
            view: The states to load.
            site: The site to read.
            depth: Fit and score checks at this depth only; None fits one probe on all depths from 1 on.
        """
        key = f"scores {view.suffix}@{view.token} {site} {'all' if depth is None else depth}"
        return self._scored(key, lambda: self._out_of_fold(self.states(view, site, depth), _options(depth)))

    def shuffled(self, view: View, site: Site, deal: int) -> Scores:
        """`scores` of probes that were fitted on labels dealt out anew within each fold: there is nothing to learn."""
        return self._scored(
            f"shuffled {deal} {view.suffix}@{view.token} {site}",
            lambda: self._out_of_fold(self._dealt(self.states(view, site, None), deal), _options(None)),
        )

    def transferred(self, view: View, site: Site) -> Scores:
        """Logits of the held-out sets, by one probe that was fitted on all depths of all answers."""

        def make() -> tuple[Checks, np.ndarray]:
            checks = self._checks(view, site)
            ours = np.isin(checks["answer"], list(self.answers))
            fitted = fit(checks.where(ours), _options(None))
            others = checks.where(~ours)
            return others, fitted.logits(others.states)

        return self._scored(f"transferred {view.suffix}@{view.token} {site}", make)

    def ready(self, suffix: str) -> Mapping[str, Any]:
        """Collect the states behind `suffix`, once: answers skipped, why they were forked, why none could be read."""

        def make() -> dict[str, Any]:
            try:
                _, done = self._collect(suffix)
            except (UnsupportedModel, TemplateError) as error:
                if suffix == "header":
                    raise
                return {"refused": str(error), "skipped": 0, "by_forks": None}
            return {"refused": None, "skipped": len(done.skipped), "by_forks": done.by_forks}

        return self.context.record(f"ready {suffix}", make)

    def _scored(self, key: str, make: Callable[[], tuple[Checks, np.ndarray]]) -> Scores:
        def record() -> dict[str, Any]:
            checks, logits = make()
            found: dict[str, list[list[float]]] = {}
            for answer, depth, logit in zip(checks["answer"], checks["depth"], logits, strict=True):
                found.setdefault(str(answer), []).append([int(depth), float(f"{logit:.6g}")])
            return {"scores": found}

        row = self.context.record(key, record)
        return {answer: {int(depth): logit for depth, logit in pairs} for answer, pairs in row["scores"].items()}

    def _out_of_fold(self, checks: Checks, options: FitOptions) -> tuple[Checks, np.ndarray]:
        folds = np.array([self.folds[str(key)] for key in checks["answer"]])
        logits = np.empty(len(checks))
        for fold in np.unique(folds):
            held = folds == fold
            logits[held] = fit(checks.where(~held), options).logits(checks.states[held])
        return checks, logits

    def dealt(self, deal: int) -> dict[str, str]:
        """Answer -> label, dealt out anew within each fold: a fold with more of one would be held to be the other."""
        rng, label = np.random.default_rng(self.context.digest("deal", deal)), {}
        for fold in range(FOLDS):
            keys = [key for key in sorted(self.folds) if self.folds[key] == fold]
            label |= {keys[to]: self.label(keys[at]) for to, at in enumerate(rng.permutation(len(keys)))}
        return label

    def _dealt(self, checks: Checks, deal: int) -> Checks:
        label = self.dealt(deal)
        return Checks({**checks.columns, "label": np.array([label[str(k)] for k in checks["answer"]])}, checks.states)

    # -- states --------------------------------------------------------------------------------------------------------

    def states(self, view: View, site: Site, depth: Depth | None) -> Checks:
        """Checks of the cross-validated answers at one depth, or at all."""
        checks = self._checks(view, site)
        rows = np.isin(checks["answer"], list(self.answers))
        if depth == END:
            rows &= checks["depth"] == checks["length"]
        elif depth is not None:
            rows &= checks["depth"] == depth
        return checks.where(rows)

    def _checks(self, view: View, site: Site) -> Checks:
        """All checks of one read, in an order that does not depend on how they were collected."""
        if self._read is None or self._read[0] != (view, site):
            checks = self._collect(view.suffix)[0].read([(site, view.token)])
            wanted = np.isin(checks["answer"], [*self.answers, *(k for group in self.held_out.values() for k in group)])
            checks = checks.where(wanted)
            self._read = (view, site), checks.where(np.lexsort((checks["depth"], checks["answer"])))
        return self._read[1]

    def _collect(self, suffix: str) -> tuple[StateStore, Collected]:
        """The store of one suffix with all its answers."""
        if suffix in self._stores:
            return self._stores[suffix]
        context, backend = self.context, self.context.backend
        rows = list(self.answers.values())
        if suffix == "header":
            tokens = None
            rows += [row for group in self.held_out.values() for row in group.values()]
        else:  # of a control only the last token is compared
            tokens = (self.control_token(suffix),)
        plan = CollectPlan(self.sites, tokens, Listed(self.depths), self.longest, suffix)
        folder, what = context.folder / "states" / context.suite / suffix, f"read {suffix}"
        self._stores[suffix] = collect_into(
            folder, backend, rows, plan, progress=lambda read, total, _: context.told(what, read, total)
        )
        return self._stores[suffix]

    # -- figures -------------------------------------------------------------------------------------------------------

    def auroc(self, name: str, values: Mapping[str, float], group: Group) -> Figure | None:
        """How well one number per answer tells harmful from harmless; None of too few answers."""
        return estimates.auroc(name, *self._sides(values, self.label), group) if self.enough(values) else None

    def chance(self, name: str, view: View, site: Site, group: Group) -> Figure | None:
        """Mean AUROC over some deals of labels that mean nothing, with the interval of that mean."""
        found = []
        for deal in range(DEALS):
            values, label = whole(self.shuffled(view, site, deal)), self.dealt(deal)
            if not self.enough(values):
                return None
            harmful, benign = self._sides(values, label.__getitem__)
            found.append(float(intervals.separation(np.array(harmful), np.array(benign))))
        return estimates.average(name, found, "auroc", group, note=f"mean of {DEALS} deals")

    @staticmethod
    def _sides(values: Mapping[str, float], label: Callable[[str], str]) -> tuple[list[float], list[float]]:
        harmful = [value for key, value in values.items() if label(key) == "harmful"]
        return harmful, [value for key, value in values.items() if label(key) != "harmful"]

    def accuracy(self, name: str, values: Mapping[str, float], group: Group) -> Figure | None:
        """Share of answers on the right side of the probe's own border; None of too few answers."""
        right = [(value > 0) == (self.label(key) == "harmful") for key, value in values.items()]
        return estimates.share(name, right, group) if self.enough(values) else None

    def enough(self, keys: Collection[str]) -> bool:
        """Whether there are answers enough of each label."""
        labels = [self.label(key) for key in keys]
        return min(labels.count("harmful"), labels.count("benign")) >= FEWEST

    def advantage(self, name: str, one: Mapping[str, float], other: Mapping[str, float], group: Group) -> Figure:
        """AUROC of `one` less that of `other`, over the answers that both score, with a paired bootstrap interval."""
        keys = sorted(one.keys() & other.keys())
        rows = [(self.label(key) == "harmful", one[key], other[key]) for key in keys]
        return estimates.statistic(name, rows, _advantage, "difference", group)  # pyright: ignore[reportArgumentType]


def whole(scores: Scores) -> dict[str, float]:
    """One number per answer: the mean of its logits from depth 1 on."""
    found = {key: [logit for depth, logit in each.items() if depth > 0] for key, each in scores.items()}
    return {key: float(np.mean(logits)) for key, logits in found.items() if logits}


def at(scores: Scores, depth: Depth) -> dict[str, float]:
    """Each answer's logit at one depth, or at its end."""
    if depth == END:
        return {key: each[max(each)] for key, each in scores.items()}
    return {key: each[int(depth)] for key, each in scores.items() if depth in each}


def _options(depth: Depth | None) -> FitOptions:
    return FitOptions(strength=0.01, balance="source", first_depth=1 if depth is None else 0)


def _advantage(harmful: np.ndarray, one: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
    """AUROC of the scores `one` less that of `other`, `[..., answers]` each; `harmful` is 1 for harmful answers."""
    stats: Any = require("scipy.stats", extra="fit")
    count = harmful.sum(axis)
    ranks = ((stats.rankdata(one, axis=axis) - stats.rankdata(other, axis=axis)) * harmful).sum(axis)
    with np.errstate(invalid="ignore"):  # a sample may have drawn one label only
        return np.nan_to_num(ranks / (count * (harmful.shape[axis] - count)))
