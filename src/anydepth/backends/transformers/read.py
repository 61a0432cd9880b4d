"""Read hidden states during a forward pass, and end the pass as soon as the last site has been seen."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from threading import get_ident
from typing import Any

import numpy as np
import torch
from torch import nn

from anydepth.backends.protocol import Site
from anydepth.backends.transformers.blocks import find_module
from anydepth.backends.transformers.cpu.shared_heads import reading
from anydepth.errors import UnsupportedModel


class _LastSiteSeen(Exception):
    """Ends a forward pass whose remaining blocks nobody needs."""


@contextmanager
def captured(model: nn.Module, sites: tuple[Site, ...], *, stop: bool) -> Iterator[dict[Site, list[torch.Tensor]]]:
    """Collect the outputs of `sites`, each `[batch, tokens, hidden_size]`, one entry a forward pass.

    With `stop` the pass ends once every site has been seen: blocks above the highest one, and the LM head, never run.
    """
    seen: dict[Site, list[torch.Tensor]] = {site: [] for site in sites}
    mine = get_ident()

    def hook(site: Site, _module: nn.Module, _args: Any, output: Any) -> None:
        if get_ident() != mine:
            return  # another thread's pass over the same model: neither its states nor its end are ours
        seen[site].append(output[0] if isinstance(output, tuple) else output)
        if stop and all(seen.values()):
            raise _LastSiteSeen

    with ExitStack() as hooks:
        for site in sites:
            hooks.enter_context(find_module(model, site).register_forward_hook(partial(hook, site)))
        yield seen


def read(
    model: nn.Module, sites: tuple[Site, ...], inputs: Mapping[str, Any], *, gradient: bool = False
) -> dict[Site, torch.Tensor]:
    """Run `model` on `inputs` up to the last of `sites`; states `[batch, tokens, hidden_size]` in the model's dtype.

    With `gradient` they know what they were made of, so that a loss of them can be followed back.
    """
    with (
        captured(model, sites, stop=True) as seen,
        suppress(_LastSiteSeen),
        torch.set_grad_enabled(gradient),
        reading(),
    ):
        model(**inputs)
    return _first_of(model, seen)


def read_whole(
    model: nn.Module, sites: tuple[Site, ...], inputs: Mapping[str, Any]
) -> tuple[dict[Site, torch.Tensor], Any]:
    """Run `model` on `inputs` to its end; the states as `read` gives them, and what `forward` gave."""
    with captured(model, sites, stop=False) as seen, torch.no_grad(), reading():
        output = model(**inputs)
    return _first_of(model, seen), output


def _first_of(model: nn.Module, seen: Mapping[Site, list[torch.Tensor]]) -> dict[Site, torch.Tensor]:
    """The states of the first pass at each site; UnsupportedModel where there was none."""
    for site, states in seen.items():
        if not states:
            raise UnsupportedModel(f"site {site} did not run in a forward pass of {type(model).__name__}")
    return {site: states[0] for site, states in seen.items()}


def to_numpy(states: torch.Tensor) -> np.ndarray:
    """The numbers of a tensor as a float32 array on the host."""
    return states.detach().to("cpu", torch.float32).numpy()
