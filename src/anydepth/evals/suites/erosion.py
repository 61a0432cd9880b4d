"""Measure what fine-tuning leaves of the model's refusals and of the guard, whose probe stays as it is."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anydepth.conversations.dataset import Conversation
from anydepth.detectors import Detector, Rethink
from anydepth.errors import ConfigError
from anydepth.evals.arms.replay import Detecting, replay
from anydepth.evals.context import Context
from anydepth.evals.figure import Summary
from anydepth.evals.instruments.tuning import TrainingExample, TuneOptions, adapted, example, trainable, tune
from anydepth.evals.suite import summed_up
from anydepth.evals.suites.erosion_figures import BASE, BELOW, BENIGN, PROBE, Measured, charts, figures_of, limits_of
from anydepth.evals.suites.erosion_sets import MeasuredSet, asked_sets
from anydepth.evals.transcript import Transcript
from anydepth.schedule import Every
from anydepth.types import json_number

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend

TITLE = "Fine-tuning: what is left of refusals and of the guard"
PAPER = "the guard holds while the model is fine-tuned on benign or on adversarial data (figure 7)"

DATA = ("adversarial", "benign")
ARMS = (BASE, "rethink", PROBE, BELOW)
TRAINING = "probe_train"
_SOURCES = "dolly*,alpaca*"

_RARELY = Every(1_000_000, doubling=False)
"""Checks at the question, the end of a prefill and the end of the answer only: a look-ahead costs up to 20 tokens."""


@dataclass(frozen=True, slots=True)
class ErosionPlan:
    """How much is trained and measured."""

    steps: tuple[int, ...]
    data: tuple[str, ...]
    arms: tuple[str, ...]
    count: int
    few: int
    new_tokens: int
    benign_tokens: int
    examples: int
    options: TuneOptions

    @classmethod
    def of(cls, context: Context) -> "ErosionPlan":
        """The user's settings, or the suite's own."""
        if unknown := [name for name in context.options.arms if name not in ARMS]:
            raise ConfigError(f"the arm is {unknown[0]!r}; choose from {', '.join(ARMS)}")
        steps = context.value("steps", "0,25,50,100,200", "0,5,10")
        count = context.count(36, 6)
        usual = TuneOptions()
        return cls(
            steps=steps,
            data=context.value("data", ",".join(DATA), ",".join(DATA)),
            arms=tuple(dict.fromkeys(context.options.arms or ARMS)),
            count=count,
            few=min(count, context.number("few", 12, 3)),
            new_tokens=context.number("new-tokens", 32, 16),
            benign_tokens=context.number("benign-tokens", 100, 50),
            examples=context.number("examples", 1000, 40),
            options=TuneOptions(
                steps=steps[1:],
                batch=context.number("batch", usual.batch, usual.batch),
                longest=context.number("longest", usual.longest, usual.longest),
                rank=context.number("rank", usual.rank, usual.rank),
                seed=context.options.seed,
            ),
        )


@dataclass(frozen=True, slots=True)
class Stage:
    """The model after so many steps on one kind of data; `folder` is None before the first."""

    step: int = 0
    data: str = ""
    folder: Path | None = None

    @property
    def key(self) -> str:
        """Names it in records and texts."""
        return f"{self.data}-{self.step}" if self.folder else "start"


def run(context: Context) -> Summary:
    """Measure; see `anydepth.evals.suite.Suite`."""
    plan = ErosionPlan.of(context)
    context.probe  # noqa: B018  without one, say so before the training
    context.judge  # noqa: B018  likewise
    sets = list(asked_sets(context, plan.count, plan.benign_tokens))
    stages, losses = [Stage()], {}
    held_out = [row for each in sets for row in each.rows.values()]
    examples = {data: _examples(context, plan, data, held_out) for data in plan.data}  # all, before the first training
    for data in plan.data:
        told = partial(context.told, f"train, {data} data")
        tuned = tune(context.backend, examples[data], plan.options, context.folder / "adapters" / data, told)
        stages += [Stage(each.step, data, each.folder) for each in tuned]
        losses[data] = {each.step: each.loss for each in tuned}
    for stage in stages:
        _measure(context, plan, sets, stage)
    measured = Measured(plan.data, plan.steps, plan.arms, [each.name for each in sets], context.records.rows)
    figures = list(figures_of(measured, context.judge.name))
    notes = _notes(context, plan, sets, losses)
    return summed_up(context, figures, charts(), limits_of(measured, figures), notes)


def _examples(
    context: Context, plan: ErosionPlan, data: str, held_out: Sequence[Conversation]
) -> list[TrainingExample]:
    """What to train on; ConfigError if there is nothing of the kind."""
    label = "harmful" if data == "adversarial" else "benign"
    sources = ["*"] if data == "adversarial" else context.setting("benign-sources", _SOURCES).split(",")
    rows = trainable(context.table(TRAINING), held_out, label=label, sources=sources)
    found = [each for row in rows if (each := example(context.backend, row, plan.options.longest))]
    if not found:
        raise ConfigError(
            f"suite {context.suite}: {TRAINING} has no {data} data to train on that fit; give another table, another "
            f"--set {context.suite}.benign-sources or {context.suite}.longest, or leave {data} out of "
            f"{context.suite}.data"
        )
    return found[: plan.examples]


def _measure(context: Context, plan: ErosionPlan, sets: Sequence[MeasuredSet], stage: Stage) -> None:
    """Make the records of one stage that are not there yet."""
    arms = plan.arms
    if stage.folder is None:  # there is no adapter to look below
        arms = tuple(dict.fromkeys(PROBE if arm == BELOW else arm for arm in arms))
    wanted = {(each.name, arm): _wanted(each, arm, plan) for each in sets for arm in arms}
    keys = [_key(arm, stage, name, row) for (name, arm), rows in wanted.items() for row in rows]
    if all(key in context.records for key in keys):
        return
    untuned = nullcontext((context.backend, context.backend))
    with adapted(context.backend, stage.folder) if stage.folder else untuned as (tuned, below):
        for each in sets:
            written = _transcripts(context, plan, each, stage, tuned)
            for arm in arms:
                shown = {row: written[row] for row in wanted[each.name, arm]}
                _fill(context, stage, each, arm, shown, below if arm == BELOW else tuned)


def _fill(
    context: Context,
    stage: Stage,
    each: MeasuredSet,
    arm: str,
    shown: Mapping[str, Transcript],
    backend: "TransformersBackend",
) -> None:
    def make(_: object) -> Iterator[dict[str, Any]]:
        made = _judged(context, each, shown) if arm == BASE else _guarded(context, arm, [*shown.values()], backend)
        about = {"arm": arm, "data": stage.data, "step": stage.step, "set": each.name}
        return ({**about, "answer": row, **facts} for row, facts in zip(shown, made, strict=True))

    context.fill(f"measure {arm} after {stage.key}", [{_key(arm, stage, each.name, row): row for row in shown}], make)


def _wanted(each: MeasuredSet, arm: str, plan: ErosionPlan) -> list[str]:
    """Which answers of a set an arm is measured on: stored ones are not the model's, and look-aheads are slow."""
    rows = list(each.rows)
    if arm == BASE:
        return rows if each.prompts else []
    if arm == BELOW and each.stored:
        return []  # the same text through the same weights at every step
    return rows[: plan.few] if arm == "rethink" else rows


def _transcripts(
    context: Context, plan: ErosionPlan, each: MeasuredSet, stage: Stage, tuned: "TransformersBackend"
) -> dict[str, Transcript]:
    """What the model of this stage writes, or what is stored."""
    if each.stored:
        return {row: Transcript(row, context.prompt(each.rows[row]), ids) for row, ids in each.stored.items()}
    prompts = {f"{stage.key}|{each.name}|{row}": prompt for row, prompt in each.prompts.items()}
    written = context.write(prompts, plan.new_tokens, backend=tuned)
    return dict(zip(each.prompts, written.values(), strict=True))


def _judged(context: Context, each: MeasuredSet, written: Mapping[str, Transcript]) -> list[dict[str, Any]]:
    items = {
        row: context.answered(each.rows[row].prompt, transcript.id, transcript.prompt)
        for row, transcript in written.items()
    }
    return [{"refused": found.refused, "harmful": found.harmful} for found in context.judged(items).values()]


def _guarded(
    context: Context, arm: str, transcripts: Sequence[Transcript], backend: "TransformersBackend"
) -> list[dict[str, Any]]:
    """What the guard would have done to the answers, reading the states of `backend`."""
    detector: Detector = context.probe
    config = context.config
    if arm == "rethink":
        detector, config = Rethink("look-ahead"), replace(config, schedule=_RARELY)
    detector.bind(backend)
    outcomes = replay(Detecting(arm, backend, detector), transcripts, config, ahead=arm != "rethink")
    return [
        {
            "halted": found.halt and found.reason == "policy",  # a check that failed saw no harm
            "errors": found.errors,
            "score": json_number(round(found.score, 5)),
            "depth": found.depth,
        }
        for found in (outcomes[each.id].verdict for each in transcripts)
    ]


def _notes(
    context: Context, plan: ErosionPlan, sets: Sequence[MeasuredSet], losses: Mapping[str, Mapping[int, float | None]]
) -> Iterator[str]:
    options = plan.options
    yield (
        f"LoRA of rank {options.rank} in every linear layer, learning rate {options.learning_rate:g} throughout, "
        f"{options.batch} examples of up to {options.longest} tokens a step, loss on the answer only. Adversarial "
        f"data: harmful answers of {TRAINING} that do not begin with a refusal; benign data: its sources "
        f"{context.setting('benign-sources', _SOURCES)}. Near-duplicates of what is measured are left out."
    )
    for data, found in losses.items():
        told = ", ".join(f"{loss:.2f} at step {step}" for step, loss in found.items() if loss is not None)
        yield f"Mean training loss of the last ten steps, {data} data: {told}."
    yield (
        f"The tuned model writes {plan.new_tokens} tokens itself, greedily; {BENIGN} are stored answers of other "
        f"models, their first {plan.benign_tokens} tokens. Probe and threshold are those of the untuned model."
    )
    yield (
        f"rethink checks the question, the end of the prefill and the end only, on the first {plan.few} answers of a "
        "set; the probe checks at all depths of the schedule."
    )
    trained = {str(source.get("name")) for source in context.probe.card.sources}
    if seen := sorted({row.source for each in sets for row in each.rows.values()} & trained):
        yield (
            "No prompt is measured that the recipe of the shipped probes trains on; but it trains on others of the "
            f"sources {', '.join(seen)}."
        )
    yield (
        "The folder adapters/ of the run holds adapters that take the model's refusals away; keep it to yourself, or "
        "delete it once the run is finished."
    )


def _key(arm: str, stage: Stage, name: str, row: str) -> str:
    return f"{arm}|{stage.key}|{name}|{row}"
