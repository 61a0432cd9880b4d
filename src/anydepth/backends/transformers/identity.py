"""Tell which checkpoint a loaded model is, whatever path, dtype or adapter it was loaded with."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from anydepth.backends.protocol import ModelIdentity
from anydepth.backends.transformers.blocks import NOT_HERE, find_blocks, text_config
from anydepth.errors import UnsupportedModel

_SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
_ROWS = 64


def identify(model: Any) -> ModelIdentity:
    """Describe `model`; the fingerprint is a digest over its norm weights and biases in bf16.

    Those vectors are small, are stored unquantised (8-bit and 4-bit loading leave them alone), come out of float32 and
    bf16 loading the same, are not touched by LoRA, and differ between checkpoints that were trained apart.

    Raises UnsupportedModel for a model without one width, number of layers or vocabulary.
    """
    config = text_config(model)
    if lacking := [name for name in _SHAPE if not hasattr(config, name)]:
        raise UnsupportedModel(
            f"{type(model).__name__} has no {', '.join(lacking)} in its configuration, so it is no stack of blocks "
            f"that could be read; {NOT_HERE}"
        )
    shape = (config.model_type, config.hidden_size, config.num_hidden_layers, config.vocab_size)
    digest = hashlib.sha256(repr(shape).encode())
    for _, parameter in sorted(_vectors(model).items()):
        digest.update(parameter.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return ModelIdentity(
        name=str(getattr(model.config, "_name_or_path", "") or type(model).__name__),
        revision=getattr(model.config, "_commit_hash", None),
        model_type=config.model_type,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        fingerprint=digest.hexdigest()[:32],
    )


def _vectors(model: Any) -> dict[str, torch.Tensor]:
    """The one-dimensional weights of the blocks; of the whole model where it has no list of blocks, or they have none.

    Where the model has none at all (OLMo): the first rows of its embeddings, which loading in 8 bits leaves alone too.
    """
    try:
        parts = {f"{index:04d}": block for index, block in enumerate(find_blocks(model))}
    except UnsupportedModel:
        parts = {}
    if vectors := _within(parts) or _within({"model": model}):
        return vectors
    embeddings = model.get_input_embeddings().weight
    return {"embeddings": embeddings[:_ROWS]}


def _within(parts: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {
        f"{place}.{name}": parameter
        for place, part in parts.items()
        for name, parameter in part.named_parameters()
        if parameter.ndim == 1 and "lora" not in name and parameter.is_floating_point()
    }
