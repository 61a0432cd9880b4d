"""Train Safety Tokens on a recipe, and collect the recipe's states behind them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy

from anydepth.atomic import write_whole
from anydepth.backends.protocol import Capability, Read, Site
from anydepth.backends.trained_tokens import prove_checks
from anydepth.digests import short_digest
from anydepth.errors import StoreError
from anydepth.probes.fitting.candidates import candidates
from anydepth.probes.fitting.fit import FitOptions
from anydepth.probes.fitting.train import Filled, collect_parts, sites_of_recipe, used_of, write_parts
from anydepth.probes.recipe.choices import Choices
from anydepth.probes.recipe.recipe import Gathered, Recipe
from anydepth.probes.states.manifest import manifest_for
from anydepth.probes.states.plan import CollectPlan
from anydepth.probes.states.store import StateStore
from anydepth.probes.tokens.token_options import TokenOptions
from anydepth.probes.tokens.token_training import TrainedTokens, header_embeddings, train_tokens
from anydepth.probes.tokens.training_texts import TrainingText, training_texts
from anydepth.types import Progress

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend

_FILE = "tokens.safetensors"


@dataclass(frozen=True, slots=True)
class FilledTrained:
    """The states of a recipe behind trained Safety Tokens.

    Attributes:
        filled: The states.
        recipe: The recipe with what is fitted on them in the place of its own layers and tokens: the last token at the
            site that the tokens were trained at.
        tokens: The tokens.
        site: That site.
    """

    filled: Filled
    recipe: Recipe
    tokens: TrainedTokens
    site: Site

    def record(self) -> dict[str, Any]:
        """What `fit.json` says of the tokens."""
        losses = [round(loss, 5) for loss in self.tokens.losses]
        return {"count": len(self.tokens.embeddings), "site": str(self.site), "losses": losses}


def fill_trained(
    backend: "TransformersBackend",
    gathered: Sequence[Gathered],
    recipe: Recipe,
    work: Path,
    options: TokenOptions,
    *,
    adapter: str | None = None,
    progress: Progress,
) -> FilledTrained:
    """Write what the target is to write, train the tokens, and collect every part behind them.

    The tokens are trained at the middle one of the sites that the recipe names, on its training answers only, with the
    labels and weights of a fit. Tokens that are there from an earlier run with the same answers are used again.

    Args:
        backend: The model.
        gathered: The conversations of the recipe's parts.
        recipe: What to read, and how the model is to write.
        work: Folder of the tokens, the states and the model's own answers.
        options: How many tokens, and how they are trained.
        adapter: The adapter that the model runs with, for the record.
        progress: Called with what is done, how many of how many, and tokens run.

    Raises:
        ConfigError: The recipe names something that does not exist, or there are more tokens than the header has.
        UnsupportedModel: The model cannot take a packed pass, or looks at a token's id elsewhere than in its embedding.
        StoreError: There are no answers of one of the labels, or `work` is of another model.
    """
    site = _middle(sites_of_recipe(backend, recipe))
    last = options.count - 1
    recipe = replace(recipe, fit={**recipe.fit, "layers": [str(site)], "tokens": [last]})
    Choices.of(recipe).check(recipe, gathered)  # refuses now what would fail after hours of work
    first = CollectPlan((site,), tokens=(last,), embeddings=header_embeddings(backend, options.count))
    reads = (Read(site, last),)
    prove_checks(backend, frozenset({Capability.HIDDEN_STATES, Capability.EMBEDDINGS}), reads, first.embeddings)
    manifest = manifest_for(backend, first, adapter=adapter)
    fit_options = candidates(manifest, recipe.fit)[0].options
    written = write_parts(backend, gathered, recipe, work, progress=progress)
    texts = training_texts(backend, written, used_of(written), (manifest, first), fit_options)
    folder = work / f"trained-{options.count}"
    mark = _mark(texts, site, options, fit_options, manifest.model.fingerprint)
    tokens = _there(folder / _FILE, mark)
    if tokens is None:
        told = partial(_told, progress)
        tokens = train_tokens(backend, texts, site, options, fit_options, progress=told)
        _keep(folder / _FILE, mark, tokens)
    plan = replace(first, embeddings=tokens.embeddings)
    manifest = manifest_for(backend, plan, adapter=adapter)
    store = StateStore.create(folder / f"states-{short_digest(manifest.suffix)}", manifest)
    return FilledTrained(collect_parts(backend, written, store, plan, progress=progress), recipe, tokens, site)


def _middle(sites: Sequence[Site]) -> Site:
    return sites[len(sites) // 2]


def _told(progress: Progress, done: int, total: int) -> None:
    progress("train Safety Tokens", done, total, 0)


def _mark(
    texts: Sequence[TrainingText], site: Site, options: TokenOptions, fit_options: FitOptions, fingerprint: str
) -> str:
    """Digest of all that decides the tokens."""
    answers = [[text.key, text.answer.depths, text.harmful.tolist(), text.weights.tolist()] for text in texts]
    facts = [fingerprint, str(site), options.record(), repr(fit_options), answers]
    return short_digest(json.dumps(facts, sort_keys=True))


def _keep(path: Path, mark: str, tokens: TrainedTokens) -> None:
    tensors = {
        "embeddings": np.array(tokens.embeddings, order="C"),
        "weight": tokens.weight,
        "bias": np.array([tokens.bias]),
        "losses": np.array(tokens.losses),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, safetensors.numpy.save(tensors, {"mark": mark}))
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def _there(path: Path, mark: str) -> TrainedTokens | None:
    """The tokens of an earlier run that was given the same; None if there are none."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("mark") != mark:
                return None
            found = {name: file.get_tensor(name) for name in ("embeddings", "weight", "bias", "losses")}
    except Exception as error:  # the library has an error for each kind of damage
        raise StoreError(f"{path} cannot be read ({error}); remove it, and the tokens are trained again") from error
    losses = tuple(map(float, found["losses"]))
    return TrainedTokens(found["embeddings"], found["weight"], float(found["bias"][0]), losses)
