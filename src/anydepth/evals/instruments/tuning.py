"""Fine-tune a model with LoRA and keep the adapter of chosen steps."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anydepth.conversations.dataset import Conversation, Label
from anydepth.conversations.splits import drop_near_duplicates
from anydepth.detectors.refusals import RefusalMatcher
from anydepth.errors import ConfigError, ModelError
from anydepth.extras import require
from anydepth.files import write_whole
from anydepth.journal import settings_before

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend

Told = Callable[[int, int], None]

LEAST_ANSWER = 16
"""Tokens of an answer that an example has room for at least."""

_EXTRA = "eval"
_SETTINGS, _UNFINISHED = "tuning.json", "unfinished"
_STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")
_RECENT = 10


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """One conversation as the model is trained on it.

    Attributes:
        ids: Prompt and answer.
        start: Where the tokens begin that the loss is taken on.
    """

    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """How to fine-tune.

    Attributes:
        steps: After which optimiser steps to keep the adapter; 0 is the adapter before training, which does nothing.
        batch: Examples a step.
        longest: Tokens of an example at most.
        rank: Rank of the adapter; its scale is twice as much, and it goes into every linear layer of the blocks.
        learning_rate: Constant, so that a curve does not depend on where it was to end.
        seed: Of the adapter's start and of the order of the examples.
    """

    steps: tuple[int, ...] = (0, 25, 50, 100, 200)
    batch: int = 4
    longest: int = 64
    rank: int = 8
    learning_rate: float = 2e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 0 or list(self.steps) != sorted(set(self.steps)):
            raise ConfigError(f"steps is {self.steps}; give whole numbers from 0 on, in rising order")
        for name in ("batch", "longest", "rank", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")


@dataclass(frozen=True, slots=True)
class Tuned:
    """An adapter that was kept: after how many steps, its PEFT folder, and the mean loss of the last 10."""

    step: int
    folder: Path
    loss: float | None


def example(
    backend: "TransformersBackend", row: Conversation, longest: int, *, forced: int = 0
) -> TrainingExample | None:
    """`row` for training, cut at `longest` tokens; None if its prompt leaves no room for an answer.

    The loss is taken on the answer, its end of turn included, without its first `forced` tokens.
    """
    prompt = backend.template.prompt([*row.messages], prefill=row.response)
    start = prompt.start + forced
    ids = (*prompt.ids, end_of_turn(backend))[:longest]
    return TrainingExample(ids, start) if prompt.prefill > forced and start + LEAST_ANSWER <= longest else None


def trainable(
    rows: Iterable[Conversation], held_out: Sequence[Conversation], *, label: Label, sources: Sequence[str] = ("*",)
) -> list[Conversation]:
    """Rows with `label` from `sources` (patterns) that answer what they are asked and are not nearly in `held_out`."""
    matcher = RefusalMatcher.default()
    found = [
        row
        for row in rows
        if row.label == label
        and any(fnmatch(row.source, pattern) for pattern in sources)
        and not matcher.is_refusal(row.response)
    ]
    return drop_near_duplicates(found, held_out).kept


def end_of_turn(backend: "TransformersBackend") -> int:
    """The token that ends an answer."""
    first, ends = backend.header.ids[0], backend.end_tokens({})
    return first if first in ends else backend.tokenizer.eos_token_id


def tune(
    backend: "TransformersBackend",
    examples: Sequence[TrainingExample],
    options: TuneOptions,
    folder: Path,
    told: Told = lambda done, total: None,
) -> list[Tuned]:
    """Train a LoRA adapter of `backend`'s model on `examples`; adapters that are in `folder` are not made again.

    A copy of the model is trained, since a trainer changes configs of the model and the tokenizer that it is given. A
    killed training goes on from the last adapter that was kept, and comes out as if it had not been killed.

    Raises:
        ConfigError: The folder was begun with other examples or options, there are no examples, or the model already
            has an adapter.
        MissingExtra: PEFT or TRL is not installed.
    """
    if backend.adapter:
        raise ConfigError("the model has an adapter already; fine-tune it without --adapter")
    if not examples:
        raise ConfigError("there is nothing to fine-tune on: no example fits; give longer examples or other data")
    _check(folder, backend, examples, options)
    if missing := [step for step in options.steps if not _place(folder, step).exists()]:
        _train(backend, examples, options, folder, missing, told)
    return [Tuned(step, _place(folder, step), _loss(_place(folder, step))) for step in options.steps]


@contextmanager
def adapted(
    backend: "TransformersBackend", folder: Path
) -> Iterator[tuple["TransformersBackend", "TransformersBackend"]]:
    """`backend` with the adapter in `folder`, twice: one reads states through it, one through the base weights.

    The adapter is put around the very model of `backend`, which must not be used meanwhile, and is taken off again.
    """
    from anydepth.backends.transformers import TransformersBackend
    from anydepth.backends.transformers.opening import open_adapter

    try:
        with _quiet():
            model = open_adapter(backend.model, folder)
    except ModelError as error:
        raise ConfigError(f"{error}; or train it again") from error
    try:
        pair = tuple(TransformersBackend(model, backend.tokenizer, base_weights=base) for base in (False, True))
        for each in pair:
            each.template = backend.template  # with the template's arguments that the user gave
        yield pair[0], pair[1]
    finally:
        model.unload()


def _train(
    backend: "TransformersBackend",
    examples: Sequence[TrainingExample],
    options: TuneOptions,
    folder: Path,
    missing: Sequence[int],
    told: Told,
) -> None:
    datasets, peft, trl = (require(name, extra=_EXTRA) for name in ("datasets", "peft", "trl"))
    from transformers import PrinterCallback, set_seed

    copy = _copy(backend)
    lora = peft.LoraConfig(
        r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    set_seed(options.seed)
    with _quiet():
        model = peft.get_peft_model(copy.model, lora)
    if 0 in missing:
        model.save_pretrained(str(folder / _UNFINISHED))
        (folder / _UNFINISHED).replace(_place(folder, 0))
    if not (wanted := [step for step in missing if step]):
        return
    settings = {
        "output_dir": str(folder),
        "max_steps": wanted[-1],
        "per_device_train_batch_size": options.batch,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "constant",
        "dataset_kwargs": {"skip_prepare_dataset": True},  # the guard's own template made the prompts
        "seed": options.seed,
        "bf16": False,  # no autocast: the base weights keep their own format, PEFT's are float32
        "use_cpu": copy.model.device.type == "cpu",
        "gradient_checkpointing": False,
        "save_strategy": "no",  # the keeper below says when
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    with _quiet():
        trainer = trl.SFTTrainer(
            model=model,
            args=trl.SFTConfig(**settings),
            train_dataset=datasets.Dataset.from_dict(_columns(examples)),
            processing_class=copy.tokenizer,
            callbacks=[_keeper(folder, wanted, told)],
        )
        trainer.remove_callback(PrinterCallback)
        begun = [step for step in _kept(folder) if 0 < step < wanted[0]]
        trainer.train(resume_from_checkpoint=str(_place(folder, begun[-1])) if begun else None)


def _copy(backend: "TransformersBackend") -> "TransformersBackend":
    """A second copy of the model, to be changed."""
    from anydepth.backends.transformers import load

    device, dtype = backend.model.device, str(backend.model.dtype).removeprefix("torch.")
    copy = load(backend.identity.name, revision=backend.identity.revision, dtype=dtype, device=str(device))
    if copy.identity.fingerprint != backend.identity.fingerprint:
        raise ConfigError(
            f"{backend.identity.name} now holds another model than the one that is loaded; load it again by its "
            "folder or hub id"
        )
    return copy


def _columns(examples: Sequence[TrainingExample]) -> dict[str, list[list[int]]]:
    masked = -100  # no loss on these
    return {
        "input_ids": [list(each.ids) for each in examples],
        "labels": [[masked] * each.start + list(each.ids[each.start :]) for each in examples],
    }


def _keeper(folder: Path, wanted: Sequence[int], told: Told) -> Any:
    """A trainer's callback that keeps the adapter of the wanted steps, under its name only once it is whole."""
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            told(state.global_step, wanted[-1])
            control.should_save = state.global_step in wanted

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            before = _kept(folder)
            (folder / f"checkpoint-{state.global_step}").replace(_place(folder, state.global_step))
            for step in before:  # going on needs the optimizer's state of the last one only, which is larger than it
                for name in _STATE:
                    (_place(folder, step) / name).unlink(missing_ok=True)

    return Keeper()


@contextmanager
def _quiet() -> Iterator[None]:
    """No word about a training leaves the machine, and none that is not ours is printed.

    TRL reports each trainer that is made to its authors unless an option of the hub's library forbids it.
    """
    constants = require("huggingface_hub", extra=_EXTRA).constants
    before, constants.HF_HUB_DISABLE_TELEMETRY = constants.HF_HUB_DISABLE_TELEMETRY, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TRL sets options under names that Transformers gives up
            yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = before


def _place(folder: Path, step: int) -> Path:
    return folder / f"step-{step:04}"


def _kept(folder: Path) -> list[int]:
    """Steps whose adapters are in the folder."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def _loss(place: Path) -> float | None:
    if not (place / "trainer_state.json").exists():
        return None  # before training
    state = json.loads((place / "trainer_state.json").read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry][-_RECENT:]
    return sum(losses) / len(losses)


def _check(
    folder: Path, backend: "TransformersBackend", examples: Sequence[TrainingExample], options: TuneOptions
) -> None:
    """Note what the adapters of this folder depend on; ConfigError if it was begun with something else."""
    content = json.dumps([[each.ids, each.start] for each in examples])
    kept = {name: value for name, value in asdict(options).items() if name != "steps"}
    now = {
        "fingerprint": backend.identity.fingerprint,
        "examples": hashlib.sha256(content.encode()).hexdigest(),
        **kept,
    }
    if settings_before(folder / _SETTINGS, now, folder) is None:
        write_whole(folder / _SETTINGS, json.dumps(now, indent=1) + "\n")
