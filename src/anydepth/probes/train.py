"""Make a probe from beginning to end: gather, write, collect, fit, choose, calibrate, measure, save."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.backends.base import CONTENT, Backend, Site
from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.errors import ConfigError
from anydepth.policy import policy_from, policy_record
from anydepth.probes.calibrate import Calibration
from anydepth.probes.candidates import Candidate, Judge, Trial, Used, candidates, listed, states_of, sweep
from anydepth.probes.collect import CollectPlan, collect, dtype_of, manifest_for, package_versions, reading_of
from anydepth.probes.facts import AnswerFacts, facts_by_answer
from anydepth.probes.fit import Fitted
from anydepth.probes.intervals import check_share
from anydepth.probes.measure import Pair, crossed, half, table, thresholds
from anydepth.probes.onpolicy import AnswerOptions, write_answers
from anydepth.probes.recipe import TRAIN, Gathered, Recipe, training_sources
from anydepth.probes.sites import sites_for
from anydepth.probes.store import Checks, Manifest, StateStore, answer_key
from anydepth.schedule import Every

Progress = Callable[[str, int, int, int], None]


@dataclass(frozen=True, slots=True)
class Filled:
    """The states that a recipe asks for.

    Attributes:
        store: Where they are. It may hold answers of an earlier recipe as well: those are not used.
        gathered: The conversations that were read, with what the model wrote in the place of what it was to write.
    """

    store: StateStore
    gathered: tuple[Gathered, ...]

    @property
    def used(self) -> dict[str, Used]:
        """Answer key -> what the data says of it now, and how it was read; of an answer in several parts, the first."""
        readings: dict[str, str] = {}
        said: list[tuple[str, AnswerFacts]] = []
        for each in self.gathered:
            reading = reading_of(each.part.schedule, each.part.longest)
            for row in each.conversations:
                key = answer_key(row.messages, row.response)
                readings.setdefault(key, reading)
                said.append((key, AnswerFacts.of(row, each.part.split)))
        return {key: Used(facts, readings[key]) for key, facts in facts_by_answer(said).items()}


@dataclass(frozen=True, slots=True)
class Trained:
    """A probe and how it came about.

    Attributes:
        probe: The probe, calibrated.
        trials: All candidates, the best first.
        figures: What was measured on the held-out answers that no choice was made on.
        left_out: Part -> what was left out of it, and why.
    """

    probe: LinearProbe
    trials: tuple[Trial, ...]
    figures: Mapping[str, Any]
    left_out: Mapping[str, str]


def fill(
    backend: Backend,
    gathered: Sequence[Gathered],
    recipe: Recipe,
    work: Path,
    *,
    adapter: str | None = None,
    progress: Progress,
) -> Filled:
    """Write what the target is to write, and collect every part; goes on where an earlier run was stopped.

    Args:
        backend: The model.
        gathered: The conversations of the recipe's parts.
        recipe: What to read, and how the model is to write.
        work: Folder of the states and of the model's own answers.
        adapter: The adapter that the model runs with, for the record.
        progress: Called with what is done, how many of how many, and tokens run.

    Raises:
        ConfigError: The recipe asks for something that there is not, or `work` was begun with other sampling options.
        StoreError: `work` holds the states of another model.
    """
    sites = _sites(backend, recipe)
    plan = CollectPlan(sites, tokens=(CONTENT, *range(len(backend.header.ids))))
    manifest = manifest_for(backend, plan, dtype=dtype_of(backend), adapter=adapter)
    _choices(recipe, gathered, manifest)  # refuses now what would fail after hours of reading
    store = StateStore.create(work / "states", manifest)
    found = []
    for each in gathered:
        part, rows, notes = each.part, each.conversations, [each.left_out]
        if part.written:
            path = work / "written" / f"{part.name}.jsonl"
            longest = part.longest or AnswerOptions().max_new_tokens
            options = AnswerOptions(max_new_tokens=longest, sampling=recipe.write)
            told = _named(progress, f"write {part.name}")
            written = write_answers(backend, rows, path, options=options, progress=told).conversations()
            asked = len({row.id for row in rows})
            rows = [row for row in written if row.response and "refusal" not in row.tags]
            notes.append(_count(asked - len(rows), "not written, empty or a refusal"))
        wanted = replace(plan, split=part.split, schedule=part.schedule, longest=part.longest)
        report = collect(backend, rows, store, wanted, progress=_named(progress, f"collect {part.name}"))
        notes.append(_count(len(report.skipped), "could not be read"))
        found.append(replace(each, conversations=rows, left_out="; ".join(filter(None, notes))))
    return Filled(store, tuple(found))


def train(backend: Backend, filled: Filled, recipe: Recipe, *, progress: Progress) -> Trained:
    """Fit the candidates of the recipe, choose on one half of the held-out prompts, report on the other.

    The threshold of the artefact is set on the benign answers of both halves; what it halts of the harmful answers,
    none of which it was set on, is measured on the other half. False-positive rates are reported for thresholds set on
    one half and measured on the other, in both directions: no figure of the report was tuned on its own answers.

    Raises:
        ConfigError: The recipe has no pairs to choose by, or asks for something that there is not.
        StoreError: There are no answers of one label to train, choose or report on.
    """
    store, used = filled.store, filled.used
    choices = _choices(recipe, filled.gathered, store.manifest)
    judge = Judge(choices.pairs, choices.policies, lambda checks: _in_half(checks, 0))

    def told(done: int, total: int, trial: Trial) -> None:
        progress("fit", done, total, 0)

    trials = sweep(store, choices.candidates, judge, used=used, progress=told)
    best = trials[0]
    checks = states_of(store, best.candidate.reads, used)
    held_out = checks.where(checks["split"] != TRAIN)
    calibration = thresholds(
        held_out,
        best.fitted.logits(held_out.states),
        best.policy,
        choices.benign,
        target=choices.target,
        data=f"held-out benign answers: {', '.join(choices.benign)}",
    )
    reported = held_out.where(_in_half(held_out, 1))
    figures = table(reported, best.fitted, choices.measured, calibration.policy)
    halves = [held_out.where(_in_half(held_out, which)) for which in (0, 1)]
    figures["false_positives"] = crossed(halves, best.fitted, choices.measured, calibration, choices.benign)
    probe = assemble(backend, filled, best, calibration)
    left_out = {each.part.name: each.left_out for each in filled.gathered if each.left_out}
    return Trained(probe, tuple(trials), figures, left_out)


def assemble(backend: Backend, filled: Filled, trial: Trial, calibration: Calibration) -> LinearProbe:
    """The artefact of a trial with its card."""
    manifest = filled.store.manifest
    card = ProbeCard(
        model=backend.identity,
        header_ids=manifest.header_ids,
        reads=trial.candidate.reads,
        template_digest=manifest.template_digest,
        dtype=manifest.dtype,
        policy=policy_record(calibration.policy),
        calibration={**calibration.record(), "schedule": str(Every())},
        sources=training_sources(filled.gathered),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=package_versions("anydepth", "numpy", "scikit-learn", "torch", "transformers"),
        seed=trial.candidate.options.seed,
        notes="",
    )
    return LinearProbe(trial.fitted.weight, trial.fitted.bias, card)


@dataclass(frozen=True, slots=True)
class _Choices:
    """What a recipe says about choosing, calibrating and measuring."""

    candidates: tuple[Candidate, ...]
    pairs: tuple[Pair, ...]
    policies: tuple[Mapping[str, Any], ...]
    benign: tuple[str, ...]
    target: float
    measured: tuple[Pair, ...]


_KEYS = {"choose": ("pairs", "policies"), "calibrate": ("benign", "target"), "measure": ("pairs",)}


def _choices(recipe: Recipe, gathered: Sequence[Gathered], manifest: Manifest) -> _Choices:
    """Read and check these tables; ConfigError says what is wrong with them."""
    for name, known in _KEYS.items():
        if unknown := sorted(set(getattr(recipe, name)) - set(known)):
            raise ConfigError(f"recipe {recipe.source}: [{name}] has {unknown[0]!r}; it takes {', '.join(known)}")
    pairs = tuple(Pair.of(record) for record in recipe.choose.get("pairs", ()))
    if not pairs:
        raise ConfigError(f"recipe {recipe.source} has no [choose] pairs: nothing says which candidate is the best")
    policies = tuple(recipe.choose.get("policies", ({"name": "threshold"},)))
    if not policies:
        raise ConfigError(f"recipe {recipe.source}: [choose] policies is empty; name one, or leave the key out")
    for record in policies:
        policy_from(record)
    benign = recipe.calibrate.get("benign", ())
    benign = (benign,) if isinstance(benign, str) else tuple(benign)
    if not benign:
        raise ConfigError(f"recipe {recipe.source} has no [calibrate] benign; name the held-out sets of the threshold")
    target = check_share("[calibrate] target", recipe.calibrate.get("target", 0.005))
    measured = tuple(Pair.of(record) for record in recipe.measure.get("pairs", ())) or pairs
    splits = {each.part.split for each in gathered} - {TRAIN}
    for split in (*benign, *(name for pair in (*pairs, *measured) for name in (*pair.harmful, *pair.benign))):
        if split not in splits:
            there = ", ".join(map(repr, sorted(splits))) or "none"
            raise ConfigError(f"recipe {recipe.source}: there is no held-out set {split!r}; there is {there}")
    return _Choices(tuple(candidates(manifest, recipe.fit)), pairs, policies, benign, target, measured)


def _sites(backend: Backend, recipe: Recipe) -> tuple[Site, ...]:
    blocks = backend.identity.num_layers
    asked = recipe.fit.get("layers")
    if asked is None:
        return sites_for(backend)
    flat = [layer for each in listed(asked) for layer in listed(each)]
    return sites_for(backend, [round(layer * blocks) if isinstance(layer, float) else layer for layer in flat])


def _in_half(checks: Checks, which: int) -> np.ndarray:
    """Mask of the checks whose prompt is in one half; a prompt is never in both."""
    names, places = np.unique(checks["prompt_key"], return_inverse=True)
    return half(names.tolist(), which)[places]


def _count(number: int, what: str) -> str:
    return f"{number} answers: {what}" if number else ""


def _named(progress: Progress, what: str) -> Callable[[int, int, int], None]:
    return lambda done, total, tokens: progress(what, done, total, tokens)


__all__ = ["Candidate", "Filled", "Fitted", "Trained", "assemble", "fill", "train"]
