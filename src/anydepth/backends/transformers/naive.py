"""Check the naive way, to measure against: copy the whole cache, run the whole model, keep every hidden state.

This is what a check costs without forking, early exit and a trimmed header, and what the paper's published server does.
Nothing but `anydepth bench` uses it.
"""

import copy

import torch

from anydepth.backends.base import Site
from anydepth.backends.transformers.session import TransformersSession


def naive_state(session: TransformersSession, site: Site) -> torch.Tensor:
    """State of the header's read token at the input of block `site.block`, `[1, hidden_size]`, of a one-row session."""
    backend = session._backend
    (branch,) = session._branches([session.current(0)], [0], session._cache)
    cache = copy.copy(branch.cache)
    assert cache is not None
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in cache.layers:
        for name, value in vars(layer).items():
            if isinstance(value, torch.Tensor):
                setattr(layer, name, value.clone())
    branch = branch.append(backend.header.ids)
    inputs = backend.inputs.build(branch.tail, cache, branch.whole_mask)
    with torch.no_grad():
        states = backend.model(**inputs, output_hidden_states=True).hidden_states
    return states[site.block][:, branch.tail.shape[1] - len(backend.header.ids) + backend.header.read_index]
