"""Check and scan the straightforward way, to measure against.

No early exit, no trimmed header, no packing: what the ideas of this package save. Only `anydepth bench` uses it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache

from anydepth.backends.protocol import Site
from anydepth.backends.transformers.fork import clone, fork
from anydepth.backends.transformers.passes import Passes
from anydepth.backends.transformers.read import to_numpy
from anydepth.backends.transformers.session import TransformersSession
from anydepth.templates.template import Prompt


def naive_state(session: TransformersSession, site: Site) -> torch.Tensor:
    """State of the header's read token at the input of block `site.block`, `[1, hidden_size]`, of a one-row session.

    Copies the whole cache, runs the whole model over the whole header and keeps every hidden state, as the paper's
    published server does at every check.
    """
    branch = session.fork_at(0).append(session.passes.header.ids)
    assert branch.cache is not None
    branch.cache.layers = [clone(layer) for layer in branch.cache.layers]
    return _last_header_state(session.passes, branch.tail, branch.cache, branch.whole_mask, site)


def naive_scan(
    passes: Passes, prompt: Prompt, answer_ids: Sequence[int], depths: Sequence[int], site: Site
) -> np.ndarray:
    """States of a finished answer, `[len(depths), hidden_size]`: advance a cache and fork it at each depth."""
    text = torch.tensor([[*prompt.ids, *answer_ids]], device=passes.model.device)
    header = torch.tensor([passes.header.ids], device=passes.model.device)
    cache, done, states = DynamicCache(config=passes.model.config), 0, []
    for depth in depths:
        stop = len(prompt.ids) + depth
        if stop > done:
            mask = torch.ones_like(text[:, :stop])
            with torch.no_grad():
                passes.model(**passes.inputs.build(text[:, done:stop], cache, mask))
            done = stop
        mask = torch.ones(1, stop + header.shape[1], dtype=torch.long, device=text.device)
        states.append(to_numpy(_last_header_state(passes, header, fork(cache), mask, site)[0]))
    return np.stack(states)


def _last_header_state(passes: Passes, ids: torch.Tensor, cache: Cache, mask: torch.Tensor, site: Site) -> torch.Tensor:
    """Input of block `site.block` at the read token of the header that ends `ids`."""
    with torch.no_grad():
        output = passes.model(**passes.inputs.build(ids, cache, mask), output_hidden_states=True)
    header = passes.header
    return output.hidden_states[site.block][:, ids.shape[1] - len(header.ids) + header.read_index]
