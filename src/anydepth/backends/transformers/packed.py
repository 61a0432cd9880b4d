"""Read the header at every depth of a finished answer in one packed pass.

The text is run once. Then one copy of the header per depth is run over its cache, all copies in one forward: copy k has
the positions that follow depth d_k, and a mask that lets it see the text up to d_k and itself. Every state is what a
fork at that depth would have given, and nothing is computed twice.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicSlidingWindowLayer

from anydepth.backends.base import Site
from anydepth.backends.transformers.blocks import text_config
from anydepth.backends.transformers.caches import new_cache
from anydepth.backends.transformers.fork import fork
from anydepth.backends.transformers.growing import GrowingLayer
from anydepth.backends.transformers.read import read, to_numpy
from anydepth.errors import PromptError, UnsupportedModel
from anydepth.template import Prompt

if TYPE_CHECKING:
    from anydepth.backends.transformers.backend import TransformersBackend

_TOKENS_A_PASS = 1024
"""Header tokens in one forward at most: bounds the mask's memory, which grows with this times the context."""


def refusal(backend: "TransformersBackend") -> str | None:
    """Why this model cannot take the packed pass, or None if it can."""
    kinds = {type(layer) for layer in new_cache(backend.model, 1, {}).layers}
    other = kinds - {GrowingLayer, DynamicSlidingWindowLayer}
    if other:
        return f"its cache has {', '.join(sorted(kind.__name__ for kind in other))}, which no attention mask can rewind"
    attention = backend.model.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        return f"its attention implementation {attention!r} takes no 4-D mask; load it with attn_implementation='sdpa'"
    if "chunked_attention" in (getattr(text_config(backend.model), "layer_types", None) or ()):
        return "it has chunked attention layers, whose mask depends on chunk borders"
    return None


def read_depths(
    backend: "TransformersBackend",
    prompt: Prompt,
    answer_ids: Sequence[int],
    depths: Sequence[int],
    sites: tuple[Site, ...],
    *,
    upto: int | None = None,
) -> dict[Site, np.ndarray]:
    """Header states at `depths`, float32 `[len(depths), upto or len(header.ids), hidden_size]` a site.

    Depth 0 is the prompt's own generation prompt, as in a session. Raises UnsupportedModel with the reason where the
    architecture cannot take the mask, PromptError for a depth outside the answer.
    """
    reason = refusal(backend)
    if reason is not None:
        raise UnsupportedModel(f"{backend.identity.name} cannot be read in a packed pass: {reason}")
    for depth in depths:
        if not 0 <= depth <= len(answer_ids):
            raise PromptError(f"depth {depth} is outside the answer, which has {len(answer_ids)} tokens")
    header = backend.header.ids[:upto]
    text = torch.tensor([list(prompt.ids[: prompt.start]) + list(answer_ids[: max(depths, default=0)])])
    text = text.to(backend.model.device)
    cache = DynamicCache()  # keeps every token, also where a sliding layer would forget the ones an early depth needs
    at_text = read(backend.model, sites, backend.inputs.build(text, cache, torch.ones_like(text)))
    out = {site: np.empty((len(depths), len(header), backend.identity.hidden_size), np.float32) for site in sites}
    size = max(1, _TOKENS_A_PASS // len(header))
    for begin in range(0, len(depths), size):
        ends = [prompt.start + depth for depth in depths[begin : begin + size]]
        states = read(backend.model, sites, _copies(backend, fork(cache), ends, header, text.shape[1]))
        for site, found in states.items():
            out[site][begin : begin + size] = to_numpy(found[0]).reshape(len(ends), len(header), -1)
    _from_prompt(backend, prompt, depths, at_text, out)
    return out


def _copies(
    backend: "TransformersBackend", cache: Cache, ends: list[int], header: tuple[int, ...], length: int
) -> dict[str, Any]:
    """Arguments of the pass that runs one copy of the header per entry of `ends` over a text of `length` tokens."""
    device = backend.model.device
    width = len(header)
    copy = torch.arange(len(ends), device=device).repeat_interleave(width)
    within = torch.arange(width, device=device).repeat(len(ends))
    ends_of = torch.tensor(ends, device=device)[copy]
    positions = ends_of + within
    sees_text = torch.arange(length, device=device)[None, :] < ends_of[:, None]
    sees_copy = (copy[None, :] == copy[:, None]) & (within[None, :] <= within[:, None])
    seen = torch.cat([sees_text, sees_copy], 1)
    distance = positions[:, None] - torch.cat([torch.arange(length, device=device), positions])[None, :]
    arguments: dict[str, Any] = {
        "input_ids": torch.tensor([list(header) * len(ends)], device=device),
        "attention_mask": _masks(backend, seen, distance),
        "past_key_values": cache,
        "use_cache": True,
    }
    if backend.inputs.takes_positions:
        arguments["position_ids"] = positions[None, :]
    return arguments


def _masks(backend: "TransformersBackend", seen: torch.Tensor, distance: torch.Tensor) -> Any:
    """An additive mask `[1, 1, new, all]`, or one a layer type where the model has several."""
    config, dtype = text_config(backend.model), backend.model.dtype

    def additive(allowed: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[None, None]

    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    near = seen if window is None else seen & (distance < window)
    if kinds == {"sliding_attention"} or (not kinds and window is not None):
        return additive(near)
    if "sliding_attention" in kinds:
        return {"full_attention": additive(seen), "sliding_attention": additive(near)}
    return additive(seen)


def _from_prompt(
    backend: "TransformersBackend",
    prompt: Prompt,
    depths: Sequence[int],
    at_text: dict[Site, torch.Tensor],
    out: dict[Site, np.ndarray],
) -> None:
    """At depth 0 the header is the generation prompt itself: take the states of its tokens from there."""
    places = [place for place, depth in enumerate(depths) if depth == 0]
    for index in range(next(iter(out.values())).shape[1]) if places else ():
        position = backend.template.start_index(prompt, index)
        if position is not None:
            for site, states in at_text.items():
                out[site][places, index] = to_numpy(states[0, position])
