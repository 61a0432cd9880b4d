"""A model of random weights, made from a `config.json` alone: what a check costs does not depend on the weights."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from anydepth.backends.transformers import TransformersBackend, cpu
from anydepth.bench.timing import FILLER
from anydepth.errors import ConfigError
from anydepth.reasons import reason

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build(config: Path, dtype: str) -> TransformersBackend:
    """A model of random weights with a small ChatML tokenizer, whose header has five tokens.

    Args:
        config: The `config.json` of a causal language model.
        dtype: `float32`, `bfloat16` or `float16`; `auto` takes what the file says, and `fast` what is fast here.

    Raises:
        ConfigError: The file is missing or no configuration, or a causal language model cannot be made of it.
    """
    if not config.is_file():
        raise ConfigError(f"--config {config}: there is no such file; give the config.json of a model")
    try:
        shape = AutoConfig.from_pretrained(config)
        shape.name_or_path = f"random weights of {config}"
        text = shape.get_text_config(decoder=True)
        wanted = _DTYPES.get(dtype) or shape.dtype or torch.float32
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(shape, dtype=wanted).eval()
    except Exception as error:  # the configuration's own class and the model's each have their errors
        raise ConfigError(
            f"--config {config}: no causal language model can be made of it: {reason(error)}; give the config.json of "
            "a text model that this version of Transformers knows"
        ) from error
    tokenizer = _tokenizer()
    if len(tokenizer) > text.vocab_size:
        raise ConfigError(
            f"--config {config}: its vocabulary of {text.vocab_size} tokens has no room for the {len(tokenizer)} of "
            "the measurement; give the config.json of a chat model"
        )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    cpu.share_heads()
    loaded: Any = cpu.faster(model) if dtype == "fast" else model
    return TransformersBackend(loaded, tokenizer, ride="auto")


def _tokenizer() -> PreTrainedTokenizerFast:
    """The words of the measurement's texts, with a ChatML template."""
    special = ["<pad>", "<|im_end|>", "<|im_start|>", "<unk>"]
    words = dict.fromkeys(["\n", "system", "user", "assistant", "Hello", *FILLER.split(), "How", "is", "tea", "made?"])
    backend = Tokenizer(models.WordLevel({token: n for n, token in enumerate([*special, *words])}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<|im_end|>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = _TEMPLATE
    return tokenizer
