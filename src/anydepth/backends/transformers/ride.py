"""Make a check in the very pass that feeds an answer's last token, and decode on from that pass.

A check on a fork feeds the last token and the header, and the next window of `generate` feeds the last token again. A
check that rides feeds both once, on the answer's own cache: the last token does not see the header behind it. Then the
header is taken back, and what the model says of the last token answers the first forward pass of the next window.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from anydepth.backends.protocol import Site
from anydepth.backends.transformers.fork import fork
from anydepth.backends.transformers.growing import GrowingLayer
from anydepth.backends.transformers.inputs import ForwardInputs
from anydepth.backends.transformers.read import read_whole
from anydepth.backends.transformers.soft_tokens import fed_instead
from anydepth.errors import ConfigError

RIDES = ("never", "auto", "always")
"""Whether checks ride: on a fork always, in the decode step where the cache can give the header back, or nowhere else.
"""


@dataclass(frozen=True, slots=True)
class Ridden:
    """A pass that fed the last token of every row with the header behind it, after the header was taken back.

    Attributes:
        output: What `forward` gave, with the logits of the last token only, `[b, 1, vocab_size]`; it holds the cache.
        before: A fork of the cache without the last token.
        states: States of the last token and the header, `[b, 1 + h, hidden_size]` per site.
        header: How many header tokens were fed, h.
        embeddings: What was fed in their place, float32 `[tokens, hidden_size]`, if anything was.
    """

    output: Any
    before: Cache
    states: dict[Site, torch.Tensor]
    header: int
    embeddings: np.ndarray | None = None


def check_ride(ride: str) -> None:
    """Raise ConfigError unless `ride` is one of `RIDES`."""
    if ride not in RIDES:
        raise ConfigError(f"ride is {ride!r}; choose one of {', '.join(RIDES)}")


def cache_refusal(cache: Cache, header: int) -> str | None:
    """Why `header` tokens cannot be taken back from `cache` once they have been fed, or None if they can.

    By exact class: full attention and sliding windows of a dynamic cache. Recurrent states, static, quantised and
    unknown layers stay on the fork.
    """
    for layer in cache.layers:
        kind = type(layer)
        if isinstance(layer, DynamicSlidingWindowLayer) and kind is DynamicSlidingWindowLayer:
            if layer.sliding_window < header + 2:
                return f"its window of {layer.sliding_window} tokens has no room for a header of {header}"
        elif kind not in (DynamicLayer, GrowingLayer):
            return f"its cache has a {kind.__name__}, which cannot give the header back"
    return None


def ride(
    model: torch.nn.Module,
    inputs: ForwardInputs,
    cache: Cache,
    text: tuple[torch.Tensor, torch.Tensor],
    header: Sequence[int],
    sites: tuple[Site, ...],
    embeddings: np.ndarray | None = None,
) -> Ridden:
    """Feed the last token of every row with `header` behind it, and take the header back.

    Args:
        model: The model.
        inputs: How it takes new tokens.
        cache: The answer's own cache, which `cache_refusal` has nothing against. Afterwards it holds the last token
            too; if the pass fails it is as it was.
        text: The last token of every row `[b, 1]`, and the mask over the whole text with it `[b, cached + 1]`.
        header: Ids of the header tokens; none where nothing behind the last token is read.
        sites: Whose states are wanted.
        embeddings: What is fed in the place of `header`, float32 `[tokens, hidden_size]`, if anything is.

    Raises:
        UnsupportedModel: A site did not run in the pass.
    """
    last, mask = text
    before, length = fork(cache), mask.shape[1]
    behind = torch.tensor([list(header)], dtype=last.dtype, device=last.device).expand(last.shape[0], -1)
    arguments = inputs.build(torch.cat([last, behind], 1), cache, torch.cat([mask, torch.ones_like(behind)], 1))
    if inputs.keeps_logits:
        arguments["logits_to_keep"] = 1 + len(header)
    try:
        with fed_instead(model, embeddings, range(1, 1 + len(header))):
            states, output = read_whole(model, sites, {**arguments, "return_dict": True})
    except BaseException:
        cache.layers = before.layers
        raise
    output.logits = output.logits[:, :1]
    if header:
        cache.layers = [_taken_back(*pair, len(header)) for pair in zip(cache.layers, before.layers, strict=True)]
    assert cache.get_seq_length() == length
    return Ridden(output, before, states, len(header), embeddings)


def _taken_back(layer: Any, before: Any, count: int) -> Any:
    """A cache layer without its last `count` tokens; `before` is a fork of it that lacks one token more."""
    if not layer.is_initialized:  # of a block that has the keys and values of another one
        return layer
    if type(layer) is not DynamicSlidingWindowLayer:
        layer.crop(-count)
        return layer
    # The layer has forgotten the oldest tokens of its window, and its fork still has them.
    assert layer.keys is not None and layer.values is not None
    end, twin = layer.keys.shape[-2] - count, copy.copy(before)
    twin.update(layer.keys[..., end - 1 : end, :], layer.values[..., end - 1 : end, :])
    return twin


def answering(model: torch.nn.Module, output: Any) -> Any:
    """A twin of `model` for one call of `generate`: its first forward pass is `output`, the others are `model`'s.

    The twin has the model's own layers and settings, and no hooks: a pass of the model runs the model's. The model
    itself is not touched, so that other threads may use it.
    """
    twin = copy.copy(model)
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        setattr(twin, hooks, OrderedDict())
    made = [output]

    @wraps(model.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return made.pop() if made else model(*args, **kwargs)

    twin.forward = forward
    return twin
