"""Which tokenizer stands in for the one that a chat template was written for."""

import copy
import re
from functools import cache
from typing import Any

from transformers import AutoTokenizer

from tests import tokenizers

# Whose template it is, by a marker of that family; the first that fits. Other templates that are made of special tokens
# get a byte-level vocabulary, those that are made of words a SentencePiece one.
_FAMILIES = (
    ("<｜Assistant｜>", "deepseek_v3"),
    ("<start_of_turn>", "gemma3"),
    ("<|start_header_id|>", "llama3_1"),
    ("<|start|>assistant<|channel|>", "gptoss"),
    ("<|START_OF_TURN_TOKEN|>", "command_r_plus"),
    ("<<SYS>>", "llama2"),
    ("[INST]", "mistral_nemo"),
    ("<|im_start|>", "qwen3"),
)

_MARKER = re.compile(
    r"<[|｜][^\s<>|｜]{1,40}[|｜]>|</?[A-Za-z_][\w:.-]{0,30}>|\[/?[A-Z][A-Z_]{2,30}\]|<\|?[a-z_]+\|?>|\]<\]\w+\[>\["
)


def tokenizer_of(template: str, base: str | None = None) -> Any:
    """Return a tokenizer with `template` and with the markers that `template` writes as special tokens.

    Args:
        template: Jinja text.
        base: Package of the vocabulary; by default the family's own.
    """
    base = base or base_of(template)
    # OLMo's way: an end of turn of its own, and the end of the document after the last one.
    two_ends = base == "qwen3" and "<|im_end|>" in template and "eos_token" in template
    shared = _shared(base, "<|endoftext|>" if two_ends else None)
    shared.add_tokens(sorted(set(_MARKER.findall(template))), special_tokens=True)  # those that it has stay as they are
    tokenizer = copy.copy(shared)
    tokenizer.chat_template = template
    return tokenizer


def base_of(template: str) -> str:
    """Return the name of the tokenizer's package for `template`."""
    for marker, package in _FAMILIES:
        if marker in template:
            return package
    return "qwen3" if _MARKER.search(template.replace("<s>", "").replace("</s>", "")) else "llama2"


@cache
def _shared(base: str, eos: str | None) -> Any:
    """Return the tokenizer of a package; loading it takes a second, so the templates share one and its added tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizers.fetch(base), local_files_only=True)
    if tokenizer.bos_token is None:
        tokenizer.add_special_tokens({"bos_token": "<|startoftext|>"})
    if eos is not None:
        tokenizer.eos_token = eos
    return tokenizer
