"""What the reward experiment trains and measures on: requests, labelled answers, and two probes fitted on the same."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anydepth.backends.protocol import WHOLE, Read, Site
from anydepth.backends.transformers import TransformersBackend
from anydepth.conversations import corpora
from anydepth.conversations.dataset import Conversation, digest
from anydepth.conversations.splits import balance, drop_near_duplicates
from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.errors import ConfigError
from anydepth.probes.fitting.fit import FitOptions, fit
from anydepth.probes.recipe.pairs import half
from anydepth.probes.recipe.recipe import Recipe, gather, training_sources
from anydepth.probes.recipe.recipe_part import RecipePart
from anydepth.probes.states.collect import collect_into
from anydepth.probes.states.plan import CollectPlan
from anydepth.schedule import Listed

ARMS: Mapping[str, str] = {
    "tokens": "Safety Tokens",
    "mean": "mean of the text",
    "text": "text judge",
    "policy": "Safety Tokens of the policy",
}
"""The rewards for harmful requests, and what the report calls them.

`tokens` and `mean` read the frozen weights below the adapter, `policy` the weights that are trained.
"""

LABELLED = "labelled"
SOURCES = ("aisafetylab", "jailjudge", "do-not-answer", "dolly-safety-subset")
LAYER = 0.57
"""Block that the probes read, as a share of the depth: that of the probe which the package ships for the model."""

FIT = FitOptions(strength=0.003, balance="label", first_depth=1)
_LONGEST_PROMPT = 40


@dataclass(frozen=True, slots=True)
class DataOptions:
    """How much is read.

    Attributes:
        answers: Labelled answers a source and label that the probes are fitted on, at most.
        held_out: Labelled answers a source and label that they are measured on, at most.
        tokens: Tokens of a labelled answer that are read.
        depths: At which depths the probes are fitted.
        evaluated: Requests of each kind that a policy is measured on: harmful ones, and harmless ones of XSTest.
    """

    answers: int = 120
    held_out: int = 24
    tokens: int = 48
    depths: tuple[int, ...] = (4, 16, 32, 48)
    evaluated: int = 40


@dataclass(frozen=True, slots=True)
class Requests:
    """The requests of the experiment; none of those that are trained on is nearly one of those measured on."""

    train_harmful: tuple[Conversation, ...]
    train_harmless: tuple[Conversation, ...]
    harmful: tuple[Conversation, ...]
    harmless: tuple[Conversation, ...]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A stored answer that no probe was fitted on: text, label, source and the key of its prompt."""

    prompt: str
    response: str
    harmful: bool
    source: str
    key: str

    def record(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def requests(data: Path, options: DataOptions) -> Requests:
    """The requests to train and to measure on.

    Harmful: half of AdvBench's prompts to train on; the other half's and StrongREJECT's to measure on, equally many.
    Harmless: the package's own prompts that sound harmful to train on; XSTest's safe ones to measure on.
    """
    advbench = _short(corpora.load("prompts_advbench", data=data))
    strongreject = _short(corpora.load("prompts_strongreject", data=data))
    xstest = [row for row in corpora.load("prompts_xstest", data=data) if row.label == "benign"]
    own = _short(corpora.load("anydepth:benign_prompts", data=data))
    first, second = ([row for row, kept in zip(advbench, mask, strict=True) if kept] for mask in _halves(advbench))
    share = options.evaluated // 2
    harmful = [*drawn(second, 0)[:share], *drawn(strongreject, 0)[: options.evaluated - share]]
    harmless = drawn(xstest, 0)[: options.evaluated]
    train_harmful = drop_near_duplicates(first, [*second, *strongreject]).kept
    train_harmless = drop_near_duplicates(own, xstest).kept
    found = Requests(*map(tuple, (train_harmful, train_harmless, harmful, harmless)))
    for name in Requests.__dataclass_fields__:
        if not getattr(found, name):
            raise ConfigError(f"there are no requests for {name}; is {data} the folder of the tables?")
    return found


def drawn(rows: Sequence[Conversation], seed: int) -> list[Conversation]:
    """The rows in an order drawn with the seed."""
    return sorted(rows, key=lambda row: digest(f"{seed}/{row.id}"))


def _short(rows: Sequence[Conversation]) -> list[Conversation]:
    return [row for row in rows if len(row.prompt.split()) <= _LONGEST_PROMPT]


def _halves(rows: Sequence[Conversation]) -> tuple[Any, Any]:
    keys = [row.prompt_key for row in rows]
    return half(keys, 0), half(keys, 1)


def training_rows(found: Requests, seed: int, steps: int, prompts: int) -> list[dict[str, Any]]:
    """The requests of a training in their order: of each step's `prompts` the last is harmless, the others harmful.

    The order depends on the seed only, so that the arms meet the same requests.

    Raises:
        ConfigError: A step has fewer than 2 prompts, so that one of the kinds would be missing.
    """
    if prompts < 2:
        raise ConfigError(f"prompts is {prompts}; give at least 2 a step, one of each kind")
    sides = drawn(found.train_harmful, seed), drawn(found.train_harmless, seed)
    rows = []
    for place in range(steps * prompts):
        step, within = divmod(place, prompts)
        harmless = within == prompts - 1
        number = step if harmless else step * (prompts - 1) + within
        row = sides[harmless][number % len(sides[harmless])]
        rows.append({"prompt": [dict(each) for each in row.messages], "kind": "harmless" if harmless else "harmful"})
    return rows


def recipe(options: DataOptions) -> Recipe:
    """The labelled answers: 30 % of the prompts are held out."""
    part = RecipePart(
        LABELLED,
        data=("probe_train", "probe_validation"),
        sources=SOURCES,
        hold_out=0.3,
        limit=options.answers,
        longest=options.tokens,
        longest_prompt=80,
        depths=options.depths,
    )
    return Recipe((part,), fit={}, source="reward_training")


def fit_probes(
    backend: TransformersBackend, data: Path, found: Requests, options: DataOptions, work: Path
) -> tuple[dict[str, LinearProbe], list[Labelled]]:
    """Two probes at one site, fitted on the same answers at the same depths, and the answers to measure them on.

    `tokens` reads the last token of the header, `mean` the mean of the answer's states.
    """
    train, held_out = gather(recipe(options), data=data, permissive_only=True)
    measured = [*found.harmful, *found.harmless]
    rows = drop_near_duplicates(train.conversations, measured).kept
    apart = balance(held_out.conversations, per_source=options.held_out).kept
    site = Site(round(LAYER * backend.identity.num_layers))
    tokens = (len(backend.header.ids) - 1, WHOLE)
    plan = CollectPlan((site,), tokens=tokens, schedule=Listed(options.depths), longest=options.tokens)
    store, _ = collect_into(work / "states", backend, rows, plan)
    probes = {}
    for name, token in zip(("tokens", "mean"), tokens, strict=True):
        fitted = fit(store.read([(site, token)]), FIT)
        card = ProbeCard(
            model=backend.identity,
            header_ids=tuple(backend.header.ids),
            reads=(Read(site, token),),
            template_digest=backend.template.digest,
            sources=training_sources([train]),
            seed=FIT.seed,
        )
        probes[name] = LinearProbe(fitted.weight, fitted.bias, card)
    return probes, [labelled(backend, row, options.tokens) for row in apart]


def labelled(backend: TransformersBackend, row: Conversation, tokens: int) -> Labelled:
    """A stored answer, cut after `tokens` tokens."""
    ids = backend.tokenizer.encode(row.response, add_special_tokens=False)[:tokens]
    return Labelled(row.prompt, backend.decode_text(ids), row.label == "harmful", row.source, row.prompt_key)


def tables(data: Path, names: Sequence[str]) -> Mapping[str, dict[str, Any]]:
    """Rows and digest of each table, for the manifest."""
    found = {}
    for name in names:
        rows = corpora.load(name, data=data)
        keys = sorted(f"{row.id}\0{row.prompt}\0{row.response}\0{row.label}" for row in rows)
        found[name] = {"rows": len(rows), "sha256": hashlib.sha256("\n".join(keys).encode()).hexdigest()}
    return found
