"""Fit every candidate of a sweep, and choose one on held-out answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any, cast

import numpy as np

from anydepth.backends.protocol import CONTENT, Read, Site
from anydepth.errors import ConfigError
from anydepth.policy import Policy, policy_from, policy_record
from anydepth.probes.fitting.fit import FitOptions, Fitted, fit
from anydepth.probes.fitting.measure import halted_share, separation
from anydepth.probes.recipe.pairs import Pair
from anydepth.probes.recipe.recipe_part import GRACE, TRAIN
from anydepth.probes.states.facts import FACTS, AnswerFacts
from anydepth.probes.states.sites import is_before_the_model
from anydepth.probes.states.store import Checks, Manifest, StateStore
from anydepth.templates.header import parse_token, token_text

_SWEPT = ("layers", "tokens", "strength", "balance", "first_depth", "clean", "bags", "method")
_BESIDE = ("first_depth", "weight", "grace", "category", "host_key", "host_source")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What to fit: the reads and the options."""

    reads: tuple[Read, ...]
    options: FitOptions

    def record(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {"reads": [str(read) for read in self.reads], **asdict(self.options)}


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate that was fitted, and how it does on the pairs that the choice is made by.

    Attributes:
        candidate: What was fitted.
        fitted: The direction.
        policy: The policy with the largest merit.
        merit: What the choice is made by: the mean of all AUROCs below, or of the shares that are halted.
        separation: Pair -> response-level AUROC with that policy.
        forced: That AUROC where the whole harmful answer is a prefill whose end alone a guard reads
            (`GuardConfig.prefill`): a policy that needs to see scores rise one by one is no guard against that.
        halted: Pair -> share of its harmful answers that is halted with a threshold set at the target; empty where the
            choice is made by AUROC.
    """

    candidate: Candidate
    fitted: Fitted
    policy: Policy
    merit: float
    separation: Mapping[str, float]
    forced: Mapping[str, float]
    halted: Mapping[str, float] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[float, float]:
        """The merit, and what decides between equal ones: the mean of all AUROCs."""
        return self.merit, float(np.mean([*self.separation.values(), *self.forced.values()]))

    def record(self) -> dict[str, Any]:
        """JSON-ready form, without the weights."""
        return {
            **self.candidate.record(),
            "policy": policy_record(self.policy),
            "merit": self.merit,
            "separation": dict(self.separation),
            "forced": dict(self.forced),
            "halted": dict(self.halted),
        }


def candidates(manifest: Manifest, settings: Mapping[str, Any], *, seed: int = 0) -> list[Candidate]:
    """The candidates that a recipe's `[fit]` names, for the states of a store.

    `layers` are blocks, sites as text (`15.mlp`), shares of the depth below 1, or lists of them to concatenate;
    `tokens` are `read` (the template's read token), `last` (the last of the header), `content`, indices, `mean25` (the
    mean of the answer's last 25 tokens), `mean` (of the whole answer so far), and lists of them to concatenate.
    Other keys are fields of `FitOptions`; a list is swept.

    Raises:
        ConfigError: A key is unknown, a value cannot be had, or a site or token was not collected.
    """
    unknown = sorted(set(settings) - set(_SWEPT))
    if unknown:
        raise ConfigError(f"[fit] has {unknown[0]!r}; it takes {', '.join(_SWEPT)}")
    named = _sites_named(settings)
    asked = listed(settings.get("layers", [s.block for s in manifest.sites]))
    layers = [_layers(manifest, each, named) for each in asked]
    tokens = [_tokens(manifest, each) for each in listed(settings.get("tokens", "read"))]
    names = [name for name in _SWEPT[2:] if name in settings]
    found = []
    for chosen, at in product(layers, tokens):
        reads = tuple(Read(site, token) for site in chosen for token in at)
        if all(is_before_the_model(read.site) and read.token >= 0 for read in reads):
            raise ConfigError(
                f"[fit] layers has {chosen[0].block}: at {reads[0]} the state is the same after every answer, no probe "
                "can be fitted on it; give blocks from 1 on"
            )
        found += [
            Candidate(reads, _options(dict(zip(names, values, strict=True)), seed))
            for values in product(*(listed(settings[name]) for name in names))
        ]
    if not found:
        raise ConfigError("[fit] has an empty list; name at least one value to try, or leave the key out")
    return list(dict.fromkeys(found))


def sweep(
    store: StateStore,
    wanted: Sequence[Candidate],
    comparison: "Comparison",
    *,
    used: Mapping[str, "Used"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Trial]:
    """Fit every candidate on the store's training answers; the best by `comparison` first.

    Args:
        store: The states.
        wanted: What to fit.
        comparison: What the choice is made by.
        used: Answer key -> what the data says of it now, of the answers to use; by default all of the store, as they
            were collected.
        progress: Called after each candidate with (candidates done, candidates in all).
    """
    trials: list[Trial] = []
    by_reads: dict[tuple[Read, ...], list[Candidate]] = {}
    for candidate in wanted:
        by_reads.setdefault(candidate.reads, []).append(candidate)
    for reads, group in by_reads.items():
        checks = states_of(store, reads, used)
        train = checks.where(checks["split"] == TRAIN)
        held_out = comparison.seen(checks)
        for candidate in group:
            trials.append(comparison.trial(candidate, fit(train, candidate.options), held_out))
            if progress is not None:
                progress(len(trials), len(wanted))
    return sorted(trials, key=lambda trial: trial.rank, reverse=True)


@dataclass(frozen=True, slots=True)
class Used:
    """An answer that a recipe uses.

    Attributes:
        facts: What its data says of it.
        reading: How it is to be read, see `CollectPlan.reading`.
        first_depth: Its checks at smaller depths, in tokens, are not trained on.
        weight: Relative weight of its checks in training.
        grace: Tokens of a harmful stretch that are not trained on, from its beginning on.
        category: What the data says the answer is about; empty if it says nothing.
        host_key: Key of the prompt whose request is read (`Conversation.host_key`); empty means the answer's own.
        host_source: Source of the conversation that the request is of; empty means the answer's own.
    """

    facts: AnswerFacts
    reading: str
    first_depth: int = 0
    weight: float = 1.0
    grace: int = GRACE
    category: str = ""
    host_key: str = ""
    host_source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "host_key", self.host_key or self.facts.prompt_key)
        object.__setattr__(self, "host_source", self.host_source or self.facts.source)


def states_of(store: StateStore, reads: Sequence[Read], used: Mapping[str, Used] | None = None) -> Checks:
    """The checks of a store, or of the answers in `used` (by answer key), with what is said of these now.

    Label, source and split of `used` answers are never those that the store was written with. What else `Used`
    says of them becomes columns of the same name.
    """
    readings = None if used is None else {key: each.reading for key, each in used.items()}
    checks = store.read([(read.site, read.token) for read in reads], views=("own",), readings=readings)
    if used is None:
        return checks
    return replace(checks, columns=columns_now(checks.columns, used))


def columns_now(columns: Mapping[str, np.ndarray], used: Mapping[str, Used]) -> dict[str, np.ndarray]:
    """The columns of some checks, with what the data says now of their answers, each of which is in `used`."""
    keys, places = np.unique(columns["answer"], return_inverse=True)
    said = [used[str(key)] for key in keys]
    now = {name: np.array([getattr(each.facts, name) for each in said], dtype=np.str_)[places] for name in FACTS}
    now |= {name: np.array([getattr(each, name) for each in said])[places] for name in _BESIDE}
    return {**columns, **now}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Compares candidates on one part of the held-out answers.

    Attributes:
        pairs: Held-out sets to tell apart.
        policies: Records of the policies to try.
        keep: Mask of the checks that may be looked at, given all of them; the rest is for the report.
        by: What the choice is made by: `auroc`, or `halted`, the share of harmful answers that is halted with a
            threshold set on benign answers; the AUROCs then decide between equal shares.
        benign: For `halted`: the held-out sets that the threshold is set on.
        target: For `halted`: share of the benign answers that may be halted.
    """

    pairs: tuple[Pair, ...]
    policies: tuple[Mapping[str, Any], ...]
    keep: Callable[[Checks], np.ndarray]
    by: str = "auroc"
    benign: tuple[str, ...] = ()
    target: float = 0.005

    def seen(self, checks: Checks) -> Checks:
        """The held-out checks that the choice is made on."""
        return checks.where(self.keep(checks) & (checks["split"] != TRAIN))

    def trial(self, candidate: Candidate, fitted: Fitted, held_out: Checks) -> Trial:
        """How a fitted candidate does, with the policy that suits it best."""
        logits = fitted.logits(held_out.states)
        trials: list[Trial] = []
        for record in self.policies:
            policy = policy_from(record)
            whole, forced = (
                {pair.name: separation(held_out, logits, pair, policy, forced=forced) for pair in self.pairs}
                for forced in (False, True)
            )
            halted = self._halted(held_out, logits, policy) if self.by == "halted" else {}
            merit = float(np.mean([*halted.values()] if halted else [*whole.values(), *forced.values()]))
            trials.append(Trial(candidate, fitted, policy, merit, whole, forced, halted))
        if not trials:
            raise ConfigError("there is no policy to try; name one under [choose] policies")
        return max(trials, key=lambda trial: trial.rank)

    def _halted(self, held_out: Checks, logits: np.ndarray, policy: Policy) -> dict[str, float]:
        return {
            pair.name: halted_share(held_out, logits, pair, policy, benign=self.benign, target=self.target)
            for pair in self.pairs
        }


def _options(values: Mapping[str, Any], seed: int) -> FitOptions:
    try:
        return FitOptions(**values, seed=seed)
    except (ConfigError, TypeError) as error:  # TypeError: text where a number is compared
        raise ConfigError(
            f"[fit] {', '.join(f'{name} = {value!r}' for name, value in values.items())}: {error}"
        ) from error


def listed(value: Any) -> list[Any]:
    """The values of a key that takes one or a list of them."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _sites_named(settings: Mapping[str, Any]) -> tuple[Site, ...]:
    """The sites that `[fit] layers` names as text, e.g. `15.mlp`; ConfigError if one is not of that form."""
    flat = [layer for each in listed(settings.get("layers", [])) for layer in listed(each)]
    return tuple(Site.parse(layer) for layer in flat if isinstance(layer, str))


def means_named(settings: Mapping[str, Any]) -> tuple[int, ...]:
    """The means that `[fit] tokens` names, the shortest first: they are collected for no recipe that names none."""
    flat = [token for each in listed(settings.get("tokens", [])) for token in listed(each)]
    return tuple(sorted({_mean(token) for token in flat if _says_mean(token)}, reverse=True))


def _says_mean(token: object) -> bool:
    return isinstance(token, str) and token.startswith("mean")


def _mean(token: str) -> int:
    try:
        return parse_token(token)
    except ConfigError as error:
        raise ConfigError(f"[fit] tokens: {error}") from None


def _layers(manifest: Manifest, value: Any, named: Sequence[Site]) -> list[Site]:
    """The sites of one entry of `layers`; a share of the depth means the collected block nearest to it.

    A block means its sites but for those that are `named` as text elsewhere.
    """
    found = []
    unnamed = [site for site in manifest.sites if site not in named] or manifest.sites
    for layer in listed(value):
        if isinstance(layer, float) and 0 < layer < 1:
            found.append(min(unnamed, key=lambda site: abs(site.block - layer * manifest.model.num_layers)))
            continue
        if isinstance(layer, str):
            sites = [site for site in manifest.sites if site == Site.parse(layer)]
        else:
            sites = [site for site in unnamed if site.block == layer]
            sites = sites or [site for site in manifest.sites if site.block == layer]
        if not sites:
            raise ConfigError(f"layer {layer!r} was not collected; there are {', '.join(map(str, manifest.sites))}")
        found += sites
    return list(dict.fromkeys(found))


def _tokens(manifest: Manifest, value: Any) -> list[int]:
    names: dict[Any, int] = {"read": manifest.read_index, "last": len(manifest.header_ids) - 1, "content": CONTENT}
    found = [cast(int, _mean(each) if _says_mean(each) else names.get(each, each)) for each in listed(value)]
    for token, each in zip(found, listed(value), strict=True):
        if token not in manifest.tokens:
            there = ", ".join(map(token_text, manifest.tokens))
            raise ConfigError(f"token {each!r} was not collected; there are {there}")
    return list(dict.fromkeys(found))
