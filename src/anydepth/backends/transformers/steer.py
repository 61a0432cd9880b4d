"""Edit hidden states during forward passes, to find out what a direction in them causes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import numpy as np
import torch
from torch import nn

from anydepth.backends.protocol import Site
from anydepth.backends.transformers.blocks import DEFAULT_MODULE, find_module
from anydepth.errors import UnsupportedModel

Edit = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""Given states `[batch, n, hidden_size]` in float32 and which of the positions these n are; the states to put there."""


@contextmanager
def edited(model: nn.Module, site: Site, edit: Edit, positions: Sequence[int]) -> Iterator[None]:
    """Change the output of `site` at some of the tokens that are fed from here on.

    Args:
        model: The model.
        site: The module whose output is changed.
        edit: Gives the states that are put in their place.
        positions: Which tokens, counted from the first one that is fed inside the context: of a header that is appended
            to a fork, 0 is its first token, whether the model takes it in one pass or token by token. Every other
            token is left alone, those that are decoded afterwards included. So nothing else may be fed first: the
            cache is filled, and the model tried (`ForwardInputs.takes_chunks`), before the context is entered.
    """
    with edited_output(find_module(model, site), edit, positions):
        yield


@contextmanager
def edited_output(module: nn.Module, edit: Edit, positions: Sequence[int]) -> Iterator[None]:
    """Change what `module` gives, `[batch, tokens, hidden_size]`, at some of the tokens; see `edited`."""
    fed, mine = 0, get_ident()

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        nonlocal fed
        if get_ident() != mine:
            return None  # another thread's pass over the same model
        states = output[0] if isinstance(output, tuple) else output
        begin, fed = fed, fed + states.shape[1]
        places = [place for place, position in enumerate(positions) if begin <= position < fed]
        if not places:
            return None
        at = [positions[place] - begin for place in places]
        changed = states.clone()
        changed[:, at] = edit(states[:, at].float(), places).to(states.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with module.register_forward_hook(hook):
        yield


def ablate(direction: np.ndarray) -> Edit:
    """The edit that projects `direction`, float `[hidden_size]`, out of the states."""
    line = torch.from_numpy(unit(direction))

    def edit(states: torch.Tensor, _places: Sequence[int]) -> torch.Tensor:
        along = line.to(states.device)
        return states - (states @ along)[..., None] * along

    return edit


def add(vector: np.ndarray) -> Edit:
    """The edit that adds `vector`, float `[hidden_size]`, to the states."""
    step = torch.from_numpy(np.asarray(vector, np.float32))
    return lambda states, _places: states + step.to(states.device)


def put(instead: np.ndarray) -> Edit:
    """The edit that puts other states in their place, float `[batch, positions, hidden_size]`."""
    others = torch.from_numpy(np.asarray(instead, np.float32))
    return lambda states, places: others[:, list(places)].to(states.device)


def entry(site: Site) -> Site:
    """Where the residual stream that `site` is made of can be edited: what enters its block, or leaves it.

    Raises:
        UnsupportedModel: The site is neither what its block begins with nor what it ends with, or nothing is before it.
    """
    if site.module == "output":
        return site
    if site.module != DEFAULT_MODULE or site.block == 0:
        raise UnsupportedModel(
            f"the site {site} does not say what enters a block; the stream can be edited for {DEFAULT_MODULE} of "
            "block 1 and later, and for output"
        )
    return Site(site.block - 1, "output")


def in_stream(model: nn.Module, site: Site, direction: np.ndarray, states: np.ndarray) -> np.ndarray:
    """The direction of the residual stream that moves the read at `site` along `direction` the most.

    Both are `[hidden_size]`, the result float32 of length 1. A norm stands between the stream and an `input_layernorm`:
    its gradient is averaged over `states` `[n, hidden_size]` of the stream at `entry(site)`.
    """
    if entry(site) == site:
        return unit(direction)
    module = find_module(model, site)
    kind = next(module.parameters(), torch.empty(0))
    with torch.enable_grad():
        stream = torch.tensor(states, dtype=kind.dtype, device=kind.device).requires_grad_()
        line = torch.tensor(unit(direction), dtype=kind.dtype, device=kind.device)
        (slope,) = torch.autograd.grad((module(stream) * line).sum(), stream)
    return unit(slope.float().mean(0).cpu().numpy())


def unit(direction: np.ndarray) -> np.ndarray:
    """The direction `[hidden_size]` scaled to length 1, float32."""
    wide = np.asarray(direction, np.float64)
    return (wide / np.linalg.norm(wide)).astype(np.float32)
