"""Load a model, its tokenizer and an adapter, with errors that say what is wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anydepth.backends.transformers import cpu
from anydepth.backends.transformers.backend import TransformersBackend
from anydepth.backends.transformers.gguf_format import gguf_format
from anydepth.backends.transformers.opening import auto_class, base_of, open_adapter, open_model, open_tokenizer
from anydepth.backends.transformers.ride import check_ride
from anydepth.errors import ModelError
from anydepth.reasons import reason

_FINDS_CONFIG = ("token", "cache_dir", "trust_remote_code", "code_revision", "gguf_file", "local_files_only")
_DTYPES = ("auto", "fast", "float32", "bfloat16", "float16")


def load(
    model: str | Path,
    *,
    dtype: str = "auto",
    device: str | None = None,
    revision: str | None = None,
    adapter: str | Path | None = None,
    base_weights: bool = False,
    ride: str = "never",
    template_kwargs: Mapping[str, Any] | None = None,
    **model_kwargs: Any,
) -> TransformersBackend:
    """Load `model` (a hub id or a folder) for guarding.

    Args:
        model: Hub id or folder, as for `from_pretrained`; that of a PEFT adapter stands for its base model with the
            adapter on.
        dtype: `auto` (the checkpoint's), `float32`, `bfloat16`, `float16`, or `fast`: the checkpoint's, or float32 on a
            CPU that computes faster in it; there also a faster product of a few rows (other last digits).
        device: Where to put it, e.g. `cuda:0`; None leaves it on the CPU, or where a `device_map` puts it.
        revision: Commit, tag or branch of the hub repository of `model`.
        adapter: Hub id or folder of a PEFT adapter (extra `peft`).
        base_weights: Read hidden states through the weights below the adapter.
        ride: Whether checks ride in the pass that feeds the last token, so that it is fed once: `never` (on a fork of
            the cache), `auto` (where the model's cache can give the header back) or `always` (an error where not).
        template_kwargs: Extra arguments of the chat template.
        **model_kwargs: Passed to `from_pretrained` of the library's auto class for the model, which is that of causal
            language models, or of models that take images or sound besides text; e.g. `device_map`,
            `attn_implementation`.

    Raises:
        ModelError: The model, tokenizer or adapter cannot be loaded; its files lack weights that the model has, hold
            them in another shape, or hold some that it leaves out; the dtype or device is unknown.
        MissingExtra: An adapter is given and PEFT is not installed.
        TemplateError: It has no chat template.
        ConfigError: There is no such `ride`.
        UnsupportedModel: `ride` is `always`, and checks of this model cannot.
    """
    check_ride(ride)
    if dtype not in _DTYPES:
        raise ModelError(f"dtype is {dtype!r}; choose one of {', '.join(_DTYPES)}")
    where = {name: model_kwargs[name] for name in ("token", "cache_dir") if name in model_kwargs}
    base = base_of(model, revision=revision, **where)
    if base is not None and adapter is not None:
        raise ModelError(f"model {str(model)!r} is an adapter itself, of {base!r}; give {base!r} and one adapter")
    tokenizer = open_tokenizer(model, revision=revision)
    arguments = {**model_kwargs, "dtype": "auto" if dtype == "fast" else dtype}
    weights, its_revision = (model, revision) if base is None else (base, None)
    found = {name: arguments[name] for name in _FINDS_CONFIG if name in arguments}
    auto = auto_class(weights, revision=its_revision, **found)
    loaded = open_model(auto, weights, revision=its_revision, **arguments)
    if device is not None:
        loaded = _moved(loaded, device)
    if loaded.device.type == "cpu":
        cpu.share_heads()
        loaded = cpu.faster(loaded) if dtype == "fast" else loaded
    if base is not None:
        loaded = open_adapter(loaded, model, revision=revision)
    elif adapter is not None:
        loaded = open_adapter(loaded, adapter)
    how = {"template_kwargs": template_kwargs, "base_weights": base_weights, "ride": ride}
    backend = TransformersBackend(loaded, tokenizer, **how)
    if (file := model_kwargs.get("gguf_file")) is not None:
        where |= {name: model_kwargs[name] for name in ("subfolder", "local_files_only") if name in model_kwargs}
        backend.gguf_format = gguf_format(weights, file, revision=its_revision, **where)
    _check_vocabulary(backend)
    return backend


def _check_vocabulary(backend: TransformersBackend) -> None:
    """Refuse a tokenizer whose Safety Tokens the model has no embedding for: it is another model's."""
    rows = getattr(backend.model.get_input_embeddings(), "num_embeddings", None)
    highest = max(backend.header.ids)
    if rows is not None and highest >= rows:
        raise ModelError(
            f"the tokenizer gives the Safety Tokens ids up to {highest}, and the model {backend.identity.name!r} has "
            f"only {rows} embeddings; give the tokenizer that belongs to the model"
        )


def _moved(model: Any, device: str) -> Any:
    """The model on another device; ModelError if there is none of that name, or no room on it."""
    try:
        moved = model.to(device)
    except Exception as error:  # each device's library has its own errors
        raise ModelError(f"device is {device!r}: {reason(error)}; give one that this machine has, e.g. cpu") from error
    if moved.device.type == "meta":
        raise ModelError(f"device is {device!r}, which holds no values; give one that this machine has, e.g. cpu")
    return moved
