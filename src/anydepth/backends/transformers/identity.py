"""Tell which checkpoint a loaded model is, whatever path, dtype or adapter it was loaded with."""

import hashlib
from typing import Any

import torch

from anydepth.backends.protocol import ModelIdentity
from anydepth.backends.transformers.blocks import find_blocks, text_config


def identify(model: Any) -> ModelIdentity:
    """Describe `model`; the fingerprint is a digest over its norm weights and biases in bf16.

    Those vectors are small, are stored unquantised (8-bit and 4-bit loading leave them alone), come out of float32 and
    bf16 loading the same, are not touched by LoRA, and differ between checkpoints that were trained apart.
    """
    config = text_config(model)
    shape = (config.model_type, config.hidden_size, config.num_hidden_layers, config.vocab_size)
    digest = hashlib.sha256(repr(shape).encode())
    vectors = {
        f"{index:04d}.{name}": parameter
        for index, block in enumerate(find_blocks(model))
        for name, parameter in block.named_parameters()
        if parameter.ndim == 1 and "lora" not in name and parameter.is_floating_point()
    }
    for _, parameter in sorted(vectors.items()):
        digest.update(parameter.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return ModelIdentity(
        name=str(getattr(model.config, "_name_or_path", "") or type(model).__name__),
        revision=getattr(model.config, "_commit_hash", None),
        model_type=config.model_type,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        fingerprint=digest.hexdigest()[:32],
    )
