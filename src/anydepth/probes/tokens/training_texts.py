"""The training answers of a recipe, each with the label and the weight of its checks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from anydepth.backends.protocol import FinishedAnswer, Reader
from anydepth.probes.fitting.candidates import Used, columns_now
from anydepth.probes.fitting.fit import FitOptions, training_checks
from anydepth.probes.fitting.train import part_plan
from anydepth.probes.recipe.recipe import Gathered
from anydepth.probes.recipe.recipe_part import TRAIN
from anydepth.probes.states.collect import Collected, Prepared, prepared, work_for
from anydepth.probes.states.plan import CollectPlan
from anydepth.probes.states.store import CheckRow, Manifest


@dataclass(frozen=True, slots=True)
class TrainingText:
    """A training answer, at the depths that are trained on.

    Attributes:
        key: Key of the answer, `answer_key`.
        answer: The answer and its depths.
        harmful: Whether each check is trained on as harmful, bool `[depths]`.
        weights: What each check weighs, float64 `[depths]`; the mean over all training answers is 1.
    """

    key: str
    answer: FinishedAnswer
    harmful: np.ndarray
    weights: np.ndarray


def training_texts(
    backend: Reader,
    written: Sequence[Gathered],
    used: Mapping[str, Used],
    reading: tuple[Manifest, CollectPlan],
    options: FitOptions,
) -> list[TrainingText]:
    """The training answers of a recipe: what a fit with `options` trains on, at the same depths with the same weights.

    Args:
        backend: The model.
        written: The conversations of the recipe's parts.
        used: Answer key -> what the data says of it.
        reading: The manifest and the plan that the recipe is collected with.
        options: Which checks are trained on, and how they are balanced.

    Raises:
        StoreError: There are no checks of one of the labels.
    """
    ready = _ready(backend, written, used, reading)
    checks = [replace(row, depth=depth) for row, answer in ready for depth in answer.depths]
    told = {each.name: np.array([getattr(row, each.name) for row in checks]) for each in fields(CheckRow)}
    rows, harmful, weights, _ = training_checks(columns_now(told, used), options)
    owner = np.repeat(np.arange(len(ready)), [len(answer.depths) for _, answer in ready])[rows]
    found = []
    for place, (row, answer) in enumerate(ready):
        mine = owner == place
        if mine.any():
            depths = tuple(checks[each].depth for each in rows[mine])
            found.append(TrainingText(row.answer, replace(answer, depths=depths), harmful[mine], weights[mine]))
    return found


def _ready(
    backend: Reader, written: Sequence[Gathered], used: Mapping[str, Used], reading: tuple[Manifest, CollectPlan]
) -> list[Prepared]:
    """The answers of the training parts that fit the model's context, each once."""
    manifest, plan = reading
    found: dict[str, Prepared] = {}
    for each in written:
        wanted = part_plan(plan, each.part)
        for group in work_for(each.conversations, wanted, {}).groups if each.part.split == TRAIN else ():
            mine = {key: row for key, row in group.items() if _is_read_so(used[key], wanted) and key not in found}
            for row, answer in prepared(backend, mine, manifest, wanted, Collected()):
                found[row.answer] = (row, answer)
    return list(found.values())


def _is_read_so(used: Used, plan: CollectPlan) -> bool:
    return used.facts.split == TRAIN and used.reading == plan.reading
