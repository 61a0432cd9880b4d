"""Load a model, its tokenizer and an adapter, with errors that say what is wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from anydepth.backends.transformers import speed
from anydepth.backends.transformers.backend import TransformersBackend
from anydepth.errors import ModelError
from anydepth.extras import require

_DTYPES = ("auto", "fast", "float32", "bfloat16", "float16")


def load(
    model: str | Path,
    *,
    dtype: str = "auto",
    device: str | None = None,
    revision: str | None = None,
    adapter: str | Path | None = None,
    base_weights: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
    **model_kwargs: Any,
) -> TransformersBackend:
    """Load `model` (a hub id or a folder) for guarding.

    Args:
        model: Hub id or folder, as for `from_pretrained`.
        dtype: `auto` (the checkpoint's), `float32`, `bfloat16`, `float16`, or `fast`: the checkpoint's, or float32 on a
            CPU that computes faster in it, and there also the faster way to multiply a few rows, which changes last
            digits.
        device: Where to put it, e.g. `cuda:0`; None leaves it on the CPU, or where a `device_map` puts it.
        revision: Commit, tag or branch of the hub repository.
        adapter: Hub id or folder of a PEFT adapter (extra `peft`).
        base_weights: Read hidden states through the weights below the adapter.
        template_kwargs: Extra arguments of the chat template.
        **model_kwargs: Passed to `AutoModelForCausalLM.from_pretrained`, e.g. `device_map`, `attn_implementation`.

    Raises:
        ModelError: The model, tokenizer or adapter cannot be loaded, or the dtype is unknown.
        TemplateError: It has no chat template.
    """
    if dtype not in _DTYPES:
        raise ModelError(f"dtype is {dtype!r}; choose one of {', '.join(_DTYPES)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
        stored = "auto" if dtype == "fast" else dtype
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, revision=revision, dtype=stored, **model_kwargs)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model {str(model)!r} cannot be loaded: {_first_line(error)}; give a hub id or a folder"
        ) from error
    if device is not None:
        try:
            loaded = loaded.to(device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"device is {device!r}: {_first_line(error)}") from error
    if dtype == "fast" and loaded.device.type == "cpu":
        if speed.slow_on_this_cpu(loaded.dtype):
            loaded = loaded.float()
        if loaded.dtype == torch.float32 and speed.faster_turned():
            speed.turn(loaded)
    if adapter is not None:
        peft = require("peft", extra="peft")
        try:
            loaded = peft.PeftModel.from_pretrained(loaded, str(adapter))
        except (OSError, ValueError) as error:
            raise ModelError(f"adapter {str(adapter)!r} cannot be loaded: {_first_line(error)}") from error
    return TransformersBackend(loaded, tokenizer, template_kwargs=template_kwargs, base_weights=base_weights)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
