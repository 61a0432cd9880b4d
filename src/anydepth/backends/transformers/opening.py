"""Open a user's checkpoint with the library's own loaders, and say what is wrong with it where that fails."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoTokenizer,
)
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from anydepth.backends.transformers.checkpoint_files import file_fault, find_fault, folder_of, has_tokenizer
from anydepth.backends.transformers.weights import some, weights_fault
from anydepth.errors import AnydepthError, ModelError
from anydepth.extras import require
from anydepth.reasons import reason

Place = str | Path
"""A hub id or a folder."""


_SEVERAL_INPUTS = (AutoModelForImageTextToText, AutoModelForMultimodalLM)
_TEMPLATE_FILE = "chat_template.json"


def open_tokenizer(place: Place, *, revision: str | None = None, what: str = "model") -> Any:
    """Load a tokenizer, with the chat template of its processor if it has none; ModelError if it cannot be loaded."""
    with opening(what, place, revision, part="tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision)
        if not tokenizer.chat_template:
            tokenizer.chat_template = _template_of_processor(place, revision)
        return tokenizer


def _template_of_processor(place: Place, revision: str | None) -> str | None:
    """The template in the file that older processors (of text and images) keep it in."""
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    file = cached_file(str(place), _TEMPLATE_FILE, revision=revision, **missing)
    return None if file is None else json.loads(Path(file).read_bytes()).get("chat_template")


def auto_class(place: Place, *, revision: str | None = None, **where: Any) -> Any:
    """The class that loads a model which answers text with text: also one that takes images or sound besides.

    Args:
        place: Hub id or folder.
        revision: Commit, tag or branch of the hub repository.
        **where: Those of `from_pretrained` that say how its configuration is found, e.g. `token`.

    Raises:
        ModelError: The library cannot read its configuration.
    """
    with opening("model", place, revision):
        config = AutoConfig.from_pretrained(place, revision=revision, **where)
    known = (AutoModelForCausalLM, *_SEVERAL_INPUTS)
    return next((auto for auto in known if type(config) in auto._model_mapping), AutoModelForCausalLM)


def open_model(
    auto: Any,
    place: Place,
    *,
    revision: str | None = None,
    what: str = "model",
    remedy: str = "fetch the whole checkpoint again, or give one that has them",
    **arguments: Any,
) -> Any:
    """Load a model whose weights all come from its files.

    Args:
        auto: The class that loads it, e.g. `AutoModelForCausalLM`.
        place: Hub id or folder.
        revision: Commit, tag or branch of the hub repository.
        what: What it is to the user, for the message.
        remedy: What to do where the files lack weights.
        **arguments: Passed to `from_pretrained`.

    Raises:
        ModelError: The library cannot load it, or its files and its config.json do not belong together.
    """
    arguments |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # told by name below, not by the log
    with opening(what, place, revision):
        model, info = auto.from_pretrained(place, revision=revision, **arguments)
    # Also where the caller asked for weights of another shape to be passed over: they would be random all the same.
    fault = weights_fault(model, info, remedy)
    # The library goes on without a generation config that it cannot read, and so with other ends of a turn.
    settings = (folder_of(place, revision) or Path()) / "generation_config.json"
    if fault is None and settings.is_file():
        fault = file_fault(settings)
    if fault is not None:
        raise _refused(what, place, fault)
    return model


def open_adapter(model: Any, place: Place, *, revision: str | None = None) -> Any:
    """Put a PEFT adapter around a model, with all of its weights and nothing left over.

    Raises:
        ModelError: It cannot be loaded, or belongs to a model of other layers.
        MissingExtra: PEFT is not installed.
    """
    peft = require("peft", extra="peft")
    remedy = "give the adapter that was trained on this model, whole"
    with opening("adapter", place, revision, part="adapter", remedy=remedy):
        loaded = peft.PeftModel.from_pretrained(model, str(place), revision=revision)
        stored = set(peft.load_peft_weights(str(place), device="cpu", revision=revision))
        wanted = set(peft.get_peft_model_state_dict(loaded, save_embedding_layers=False))
        elsewhere = set(loaded.state_dict())  # e.g. embeddings that were saved with the adapter
    fault = _adapter_fault(loaded.active_peft_config, stored, wanted, elsewhere)
    if fault is not None:
        getattr(loaded, "unload", lambda: None)()  # it went into the layers of the caller's model, if of such a kind
        raise _refused("adapter", place, f"{fault}; {remedy}")
    return loaded


def _adapter_fault(config: Any, stored: set[str], wanted: set[str], elsewhere: set[str]) -> str | None:
    """What is wrong with an adapter that was put on: its kind, or weights that it lacks or has too many."""
    if config.is_prompt_learning:
        return (  # its tokens are put in by PEFT's wrapper, and what runs here is the model inside
            f"{config.peft_type.value} puts learnt tokens before the prompt, and the guard runs the model's layers "
            "alone, so that they would be left out; an adapter of layers is needed, e.g. LoRA"
        )
    if missing := sorted(wanted - stored):
        return f"its files lack weights ({len(missing)}) that its adapter_config.json says it has: {some(missing)}"
    if extra := sorted(stored - wanted - elsewhere):
        return f"it has weights ({len(extra)}) that have no place in this model: {some(extra)}"
    return None


def base_of(place: Place, *, revision: str | None = None, **where: Any) -> str | None:
    """The base model of an adapter that is given in a model's place; None if `place` is a model.

    Args:
        place: Hub id or folder.
        revision: Commit, tag or branch of the hub repository.
        **where: `token` and `cache_dir`, as the model is loaded with.

    Raises:
        ModelError: It is an adapter and a model at once, or the adapter does not name its base model.
    """
    with opening("model", place, revision):
        found = find_adapter_config_file(str(place), revision=revision, **where)
        if found is None:
            return None
        base = json.loads(Path(found).read_bytes()).get("base_model_name_or_path")
    if Path(found).with_name("config.json").exists():
        remedy = "put adapter_config.json and the adapter's weights into a folder of their own"
        raise _refused("model", place, f"it holds a model and an adapter; {remedy} and give that as the adapter")
    if not base:
        nameless = "it is an adapter, and its adapter_config.json names no base model"
        raise _refused("model", place, f"{nameless}; give the base model, and this as the adapter")
    return str(base)


@contextmanager
def opening(
    what: str, place: Place, revision: str | None = None, *, part: str | None = None, remedy: str | None = None
) -> Iterator[None]:
    """Turn any exception of a library that reads a user's files into a ModelError, with its reason and a remedy.

    Libraries raise whatever comes up: the errors of each file format, of a missing package, of a check of the config.
    Only calls of libraries belong inside, so that an error of this package is never taken for one of the files.

    Args:
        what: What is loaded, e.g. `adapter`.
        place: Hub id or folder.
        revision: Commit, tag or branch of the hub repository.
        part: `tokenizer` or `adapter`, if only such files are read.
        remedy: What to do where no file is found to be broken.
    """
    try:
        yield
    except AnydepthError:
        raise
    except Exception as error:
        why = _known_cause(error) or _broken_file(place, revision, part)
        if why is None:
            # so written, it cannot be meant as a hub id
            is_path = str(place).startswith(("/", ".", "~")) or str(place).count("/") > 1
            missing = is_path and folder_of(place, revision) is None
            said = f"there is no folder {str(place)!r}" if missing else reason(error)
            why = f"{said}; {remedy or 'give a hub id, or a folder with a whole checkpoint'}"
        raise _refused(what, place, why) from error


def _refused(what: str, place: Place, why: str) -> ModelError:
    return ModelError(f"{what} {str(place)!r} cannot be loaded: {why}")


def _known_cause(error: Exception) -> str | None:
    """Reason and remedy of what no file of the checkpoint is to blame for."""
    if isinstance(error, ImportError):
        return f"{reason(error)}; install what it needs"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{reason(error)}; make room on the disk, or set HF_HOME to a folder on another one"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return f"there is not enough memory ({reason(error)}); give a smaller model, or a dtype with fewer bits"
    return None


def _broken_file(place: Place, revision: str | None, part: str | None) -> str | None:
    """Which file is broken or missing, and the remedy: it says more than what a library makes of it."""
    folder = folder_of(place, revision)
    if folder is None:
        return None
    if (fault := find_fault(folder)) is not None:
        return fault
    if part == "tokenizer" and not has_tokenizer(folder):
        return f"there is no tokenizer in {folder}; copy the tokenizer's files (tokenizer.json, …) into it"
    if part == "adapter" and not any(folder.glob("adapter_model*")):
        return f"there are no weights of an adapter in {folder}; copy adapter_model.safetensors into it"
    return None
