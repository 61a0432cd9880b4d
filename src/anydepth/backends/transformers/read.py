"""Read hidden states during a forward pass, and end the pass as soon as the last site has been seen."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from anydepth.backends.protocol import Site
from anydepth.backends.transformers.blocks import find_module
from anydepth.errors import UnsupportedModel

LONG_CONTEXT = 1024
"""Tokens from which repeating key and value heads costs more than intercepting the attention calls."""


class _LastSiteSeen(Exception):
    """Ends a forward pass whose remaining blocks nobody needs."""


@contextmanager
def captured(model: nn.Module, sites: tuple[Site, ...], *, stop: bool) -> Iterator[dict[Site, list[torch.Tensor]]]:
    """Collect the outputs of `sites`, each `[batch, tokens, hidden_size]`, one entry a forward pass.

    With `stop` the pass ends once every site has been seen: blocks above the highest one, and the LM head, never run.
    """
    seen: dict[Site, list[torch.Tensor]] = {site: [] for site in sites}
    mine = get_ident()

    def hook_for(site: Site) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if get_ident() != mine:
                return  # another thread's pass over the same model: neither its states nor its end are ours
            seen[site].append(output[0] if isinstance(output, tuple) else output)
            if stop and all(seen.values()):
                raise _LastSiteSeen

        return hook

    handles = [find_module(model, site).register_forward_hook(hook_for(site)) for site in sites]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def read(model: nn.Module, sites: tuple[Site, ...], inputs: Mapping[str, Any]) -> dict[Site, torch.Tensor]:
    """Run `model` on `inputs` up to the last of `sites`; states `[batch, tokens, hidden_size]` in the model's dtype."""
    with captured(model, sites, stop=True) as seen:
        try:
            with torch.no_grad(), _grouped_heads(inputs):
                model(**inputs)
        except _LastSiteSeen:
            pass
    for site, states in seen.items():
        if not states:
            raise UnsupportedModel(f"site {site} did not run in a forward pass of {type(model).__name__}")
    return {site: states[0] for site, states in seen.items()}


def to_numpy(states: torch.Tensor) -> np.ndarray:
    """The numbers of a tensor as a float32 array on the host."""
    return states.detach().to("cpu", torch.float32).numpy()


@contextmanager
def _grouped_heads(inputs: Mapping[str, Any]) -> Iterator[None]:
    """On a CPU and over a long context, let masked attention share key and value heads.

    A header is several tokens over a cache, which needs a mask, and Transformers then repeats the heads over the whole
    context; at 8,000 tokens that takes longer than the rest of the check. The variable is read at each call; on a GPU
    the repeated form is faster.
    """
    name = "TRANSFORMERS_SDPA_FORCE_GQA"
    positions = inputs.get("position_ids")
    long = positions is not None and int(positions.max()) >= LONG_CONTEXT
    if not long or inputs["input_ids"].device.type != "cpu" or name in os.environ:
        yield
        return
    os.environ[name] = "1"
    try:
        with _HeadsAsQueries():
            yield
    finally:
        os.environ.pop(name, None)


class _HeadsAsQueries(TorchFunctionMode):
    """Hands the query heads of one key head to attention as more queries of it, so that its keys are read once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention or not kwargs.get("enable_gqa") or kwargs.get("attn_mask") is None:
            return func(*args, **kwargs)
        query, key, value = args
        mask = kwargs.pop("attn_mask")
        del kwargs["enable_gqa"]
        batch, heads, tokens, width = query.shape
        times = heads // key.shape[1]
        query = query.reshape(batch, key.shape[1], times * tokens, width)
        out = func(query, key, value, attn_mask=mask.repeat(1, 1, times, 1), **kwargs)
        return out.reshape(batch, heads, tokens, value.shape[-1])
