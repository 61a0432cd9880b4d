"""Make a probe from beginning to end: gather, write, collect, fit, choose, calibrate, measure, save."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.backends.protocol import CONTENT, Backend, Site
from anydepth.conversations.splits import Text
from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.policy import Policy, policy_record
from anydepth.probes.fitting.calibrate import Calibration
from anydepth.probes.fitting.candidates import (
    Comparison,
    Trial,
    Used,
    candidates,
    listed,
    means_named,
    states_of,
    sweep,
)
from anydepth.probes.fitting.held_out_figures import held_out_figures
from anydepth.probes.fitting.leave_out import without_each_source
from anydepth.probes.fitting.measure import thresholds
from anydepth.probes.fitting.request_control import control_reads, request_control
from anydepth.probes.recipe.choices import CHOSEN, REPORTED, Choices
from anydepth.probes.recipe.own_answers import AnswerOptions, write_answers
from anydepth.probes.recipe.pairs import half, one_a_prompt
from anydepth.probes.recipe.recipe import TRAIN, Gathered, Recipe, training_sources
from anydepth.probes.recipe.recipe_part import RecipePart
from anydepth.probes.states.collect import collect
from anydepth.probes.states.facts import AnswerFacts, facts_by_answer
from anydepth.probes.states.manifest import manifest_for, package_versions
from anydepth.probes.states.plan import CollectPlan, reading_of
from anydepth.probes.states.sites import sites_for
from anydepth.probes.states.store import Checks, StateStore, answer_key
from anydepth.schedule import Every
from anydepth.types import Progress


@dataclass(frozen=True, slots=True)
class Filled:
    """The states that a recipe needs.

    Attributes:
        store: Where they are. It may hold answers of an earlier recipe as well: those are not used.
        gathered: The conversations that were read, with what the model wrote in the place of what it was to write.
        embeddings: The trained Safety Tokens that were appended, float32 `[tokens, hidden_size]`; None for the header.
    """

    store: StateStore
    gathered: tuple[Gathered, ...]
    embeddings: np.ndarray | None = None

    @property
    def used(self) -> dict[str, Used]:
        """Answer key -> what the data says of it now, and how it was read; of an answer in several parts, the first."""
        return used_of(self.gathered)

    @property
    def seen(self) -> dict[str, set[str]]:
        """What answers were used for -> their keys, `Text.key`: what may not be taken for new to the probe.

        With a moved answer goes the one whose request, or first words, it was put behind.
        """
        found: dict[str, set[str]] = {"trained": set(), "chosen": set()}
        for each in self.gathered:
            trained = each.part.split == TRAIN
            prompts = [row.prompt_key for row in each.conversations]
            for row, chosen in zip(each.conversations, half(prompts, CHOSEN), strict=True):
                if trained or chosen:
                    keys = {Text.of(row.messages, row.response).key, *filter(None, [row.tags.get("host_text")])}
                    found["trained" if trained else "chosen"] |= keys
        return found


def used_of(gathered: Sequence[Gathered]) -> dict[str, Used]:
    """Answer key -> what the data says of it now, and how it is read; of an answer in several parts, the first."""
    first: dict[str, Used] = {}
    said: list[tuple[str, AnswerFacts]] = []
    for each in gathered:
        part = each.part
        reading = reading_of(part.schedule, part.longest)
        for row in each.conversations:
            key, facts = answer_key(row.messages, row.response), AnswerFacts.of(row, part.split)
            beside = (part.first_depth, part.weight, part.grace, row.tags.get("category", ""))
            host = (row.host_key, row.tags.get("host_source", ""))
            first.setdefault(key, Used(facts, reading, *beside, *host))
            said.append((key, facts))
    return {key: replace(first[key], facts=facts) for key, facts in facts_by_answer(said).items()}


@dataclass(frozen=True, slots=True)
class Trained:
    """A probe and how it came about.

    Attributes:
        probe: The probe, calibrated.
        trials: All candidates, the best first.
        figures: What was measured on the held-out answers that no choice was made on.
        left_out: Part -> what was left out of it, and why.
        seen: What answers were used for -> their keys, see `Filled.seen`.
    """

    probe: LinearProbe
    trials: tuple[Trial, ...]
    figures: Mapping[str, Any]
    left_out: Mapping[str, str]
    seen: Mapping[str, set[str]]


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
        ConfigError: The recipe names something that does not exist, or `work` was begun with other sampling options.
        StoreError: `work` holds the states of another model.
    """
    sites = sites_of_recipe(backend, recipe)
    plan = CollectPlan(sites, tokens=(CONTENT, *range(len(backend.header.ids)), *means_named(recipe.fit)))
    manifest = manifest_for(backend, plan, adapter=adapter)
    Choices.of(recipe).check(recipe, gathered)  # refuses now what would fail after hours of reading
    for candidate in candidates(manifest, recipe.fit):
        control_reads(manifest, candidate.reads)
    store = StateStore.create(work / "states", manifest)
    written = write_parts(backend, gathered, recipe, work, progress=progress)
    return collect_parts(backend, written, store, plan, progress=progress)


def write_parts(
    backend: Backend, gathered: Sequence[Gathered], recipe: Recipe, work: Path, *, progress: Progress
) -> list[Gathered]:
    """The conversations, with what the model wrote in the place of what it was to write; see `fill`."""
    found = []
    for each in gathered:
        part, rows = each.part, each.conversations
        if not part.written:
            found.append(each)
            continue
        path = work / "written" / f"{part.name}.jsonl"
        longest = part.longest or AnswerOptions().max_new_tokens
        options = AnswerOptions(max_new_tokens=longest, sampling=recipe.write)
        told = partial(progress, f"write {part.name}")
        written = write_answers(backend, rows, path, options=options, progress=told).conversations()
        asked = len({row.id for row in rows})
        rows = [row for row in written if row.response and "refusal" not in row.tags]
        found.append(_noted(replace(each, conversations=rows), asked - len(rows), "not written, empty or a refusal"))
    return found


def collect_parts(
    backend: Backend, written: Sequence[Gathered], store: StateStore, plan: CollectPlan, *, progress: Progress
) -> Filled:
    """Collect every part, each at its own depths; what is appended and where is read, `plan` says."""
    found = []
    for each in written:
        part = each.part
        wanted = part_plan(plan, part)
        told = partial(progress, f"collect {part.name}")
        report = collect(backend, each.conversations, store, wanted, progress=told)
        found.append(_noted(each, len(report.skipped), "could not be read"))
    return Filled(store, tuple(found), plan.embeddings)


def part_plan(plan: CollectPlan, part: RecipePart) -> CollectPlan:
    """How the answers of a part are read."""
    return replace(plan, split=part.split, schedule=part.schedule, longest=part.longest)


def _noted(gathered: Gathered, number: int, what: str) -> Gathered:
    """With a note of how many answers were left out, if any were."""
    note = f"{number} answers: {what}" if number else ""
    return replace(gathered, left_out="; ".join(filter(None, [gathered.left_out, note])))


def train(backend: Backend, filled: Filled, recipe: Recipe, *, progress: Progress) -> Trained:
    """Fit the candidates of the recipe, choose on one half of the held-out prompts, report on the other.

    The threshold of the artefact is set on the benign answers of both halves; what it halts of the harmful answers,
    none of which it was set on, is measured on the other half. False-positive rates are reported for thresholds set on
    one half and measured on the other, in both directions: no threshold is measured on its own answers, but the probe
    was chosen on one of the halves. With the contract `guarantee` the threshold is set on the half that nothing was
    chosen on, with one answer a prompt, and measured on the other.

    Raises:
        ConfigError: The recipe has no pairs to choose by, or names something that does not exist.
        StoreError: There are no answers of one label to train, choose or report on.
    """
    store, used = filled.store, filled.used
    choices = Choices.of(recipe)  # of a recipe that may measure what the one that filled the store did not
    comparison = Comparison(
        choices.pairs,
        choices.policies,
        lambda checks: _in_half(checks, CHOSEN),
        by=choices.by,
        benign=choices.benign,
        target=choices.target,
    )

    wanted = candidates(store.manifest, recipe.fit)
    trials = sweep(store, wanted, comparison, used=used, progress=partial(_told, progress, "fit"))
    best = trials[0]
    checks = states_of(store, best.candidate.reads, used)
    held_out = checks.where(checks["split"] != TRAIN)
    halves = [held_out.where(_in_half(held_out, which)) for which in (CHOSEN, REPORTED)]
    reported = halves[REPORTED]
    sure = choices.contract == "guarantee"  # which does not hold for answers that the probe was chosen on
    calibrated = _one_a_prompt(reported, choices) if sure else held_out
    calibration = _calibrated(calibrated, best, choices)
    control = request_control(store, used, best.candidate, checks, calibrated["answer"], choices)
    figures = held_out_figures(halves, best.fitted, calibration, choices, control)
    if choices.leave_out:
        told = partial(_told, progress, "leave out")
        training = checks.where(checks["split"] == TRAIN)
        figures["leave_out"] = without_each_source(training, reported, best, progress=told)
    probe = assemble(backend, filled, best, calibration.policy, {**calibration.record(), **figures["calibration"]})
    left_out = {each.part.name: each.left_out for each in filled.gathered if each.left_out}
    return Trained(probe, tuple(trials), figures, left_out, filled.seen)


def _told(progress: Progress, what: str, done: int, total: int) -> None:
    progress(what, done, total, 0)


def _one_a_prompt(checks: Checks, choices: Choices) -> Checks:
    """Checks of benign answers that share no prompt: the test behind a guarantee takes them for independent draws."""
    mine = np.isin(checks["split"], list(choices.benign)) & (checks["label"] == "benign")
    answers, first = np.unique(checks["answer"][mine], return_index=True)
    prompts, hosts = (keys[mine][first].tolist() for keys in (checks["prompt_key"], checks.host_keys))
    keep = one_a_prompt(answers.tolist(), prompts, hosts)
    return checks.where(mine & np.isin(checks["answer"], answers[keep]))


def _calibrated(checks: Checks, trial: Trial, choices: Choices) -> Calibration:
    return thresholds(
        checks,
        trial.fitted.logits(checks.states),
        trial.policy,
        choices.benign,
        target=choices.target,
        confidence=choices.confidence,
        guarantee=choices.contract == "guarantee",
        data=f"held-out benign answers: {', '.join(choices.benign)}",
    )


def assemble(
    backend: Backend, filled: Filled, trial: Trial, policy: Policy, calibration: Mapping[str, Any]
) -> LinearProbe:
    """The artefact of a trial with its card: its calibrated policy, and the record of the calibration."""
    manifest = filled.store.manifest
    card = ProbeCard(
        model=backend.identity,
        header_ids=manifest.header_ids,
        reads=trial.candidate.reads,
        template_digest=manifest.template_digest,
        dtype=manifest.dtype,
        adapter=manifest.adapter,
        policy=policy_record(policy),
        calibration={**calibration, "schedule": str(Every())},
        sources=training_sources(filled.gathered),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=package_versions("anydepth", "numpy", "scikit-learn", "torch", "transformers"),
        seed=trial.candidate.options.seed,
        notes="",
        safety_tokens=0 if filled.embeddings is None else len(filled.embeddings),
    )
    return LinearProbe(trial.fitted.weight, trial.fitted.bias, card, embeddings=filled.embeddings)


def sites_of_recipe(backend: Backend, recipe: Recipe) -> tuple[Site, ...]:
    """The sites that a recipe's `[fit] layers` names, in the order of the blocks."""
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
