"""Read over a long context without repeating the key and value heads that query heads share."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

LONG_CONTEXT = 1024
"""Tokens from which repeating key and value heads costs more than the rest of a header's attention."""

_reading: ContextVar[bool] = ContextVar("reading", default=False)


def share_heads() -> None:
    """Register `attention` for `sdpa`: on a CPU, a reading then shares heads; other passes are the library's own."""
    AttentionInterface.register("sdpa", attention)


@contextmanager
def reading() -> Iterator[None]:
    """Say that the passes inside read hidden states: nothing is decoded in them but a token that a check rides with."""
    token = _reading.set(True)
    try:
        yield
    finally:
        _reading.reset(token)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The library's attention; while a header is read, with the query heads of one key head as more queries of it.

    A header is several tokens over a cache, which needs a mask, and Transformers then repeats the key heads over the
    whole context: at 6,000 tokens that took longer than the rest of the check.

    Arguments are those of `sdpa_attention_forward`: `query` `[b, heads, tokens, head_dim]`, `key` and `value`
    `[b, key heads, all tokens, dim]`, `attention_mask` `[b, 1, tokens, all tokens]` or None. Returns
    `[b, tokens, heads, value dim]`, and no weights.
    """
    times = getattr(module, "num_key_value_groups", 1)
    shares = _reading.get() and times > 1 and query.device.type == "cpu" and key.shape[2] >= LONG_CONTEXT
    special = kwargs.get("softcap") is not None or kwargs.get("position_bias") is not None
    if not shares or special or attention_mask is None or attention_mask.shape[1] != 1:
        options = {"dropout": dropout, "scaling": scaling, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    batch, heads, tokens, width = query.shape
    queries = query.reshape(batch, key.shape[1], times * tokens, width)
    mask = attention_mask.repeat(1, 1, times, 1)
    out = scaled_dot_product_attention(queries, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    return out.reshape(batch, heads, tokens, value.shape[-1]).transpose(1, 2).contiguous(), None
