"""Fork a KV cache without copying it.

Each kind of cache layer of Transformers 5 needs its own way, because what `update` does in place differs:

    shared    `update` rebinds the tensors (torch.cat): a shallow copy of the layer that shares them is a correct fork.
    slots     `update` writes past the end of a buffer: the fork shares the buffer and owns its length. Slots beyond the
              parent's end are not seen by the parent, which overwrites them as it goes on; one fork at a time.
    cloned    `update` rewrites the state in place (rolling windows, recurrent states): the small state is cloned.
    empty     nothing is stored.

A kind that is not listed is refused: a wrong fork would corrupt the answer or blind the guard.
"""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only
from transformers import cache_utils
from transformers.cache_utils import Cache

from anydepth.backends.transformers.growing import GrowingLayer
from anydepth.errors import UnsupportedCache


def _slots(layer: Any) -> Any:
    twin = copy.copy(layer)
    twin.cumulative_length = layer.cumulative_length.clone()
    if getattr(layer, "indexer_cumulative_length", None) is not None:
        twin.indexer_cumulative_length = layer.indexer_cumulative_length.clone()
    return twin


def _states_cloned(layer: Any) -> Any:
    """Clone the recurrent and convolution states; keys and values beside them are rebound by `update`, so shared."""
    twin = copy.copy(layer)
    states = {name: value for name, value in vars(layer).items() if isinstance(value, dict)}
    vars(twin).update(tree_map_only(torch.Tensor, torch.clone, states))
    return twin


def clone(layer: Any) -> Any:
    """Copy every tensor that a cache layer holds, directly or in its dictionaries and tuples."""
    twin = copy.copy(layer)
    vars(twin).update(tree_map_only(torch.Tensor, torch.clone, vars(layer)))
    return twin


_KINDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "DynamicLayer": ("shared", copy.copy),
    "DynamicSlidingWindowLayer": ("shared", copy.copy),
    "DynamicIndexedLayer": ("shared", copy.copy),
    "QuantoQuantizedLayer": ("shared", copy.copy),
    "HQQQuantizedLayer": ("shared", copy.copy),
    "Fp8QuantizedLayer": ("shared", copy.copy),
    "StaticLayer": ("slots", _slots),
    "StaticIndexedLayer": ("slots", _slots),
    "StaticSlidingWindowLayer": ("cloned", clone),
    "LinearAttentionLayer": ("cloned", _states_cloned),
    "LinearAttentionAndFullAttentionLayer": ("cloned", _states_cloned),
    "LinearAttentionAndSlidingWindowAttentionLayer": ("cloned", _states_cloned),
    "LinearAttentionAndStaticFullAttentionLayer": ("cloned", clone),
    "LinearAttentionAndStaticSlidingWindowAttentionLayer": ("cloned", clone),
    "DummyLayer": ("empty", copy.copy),
}
_BY_CLASS = {getattr(cache_utils, name): kind for name, kind in _KINDS.items() if hasattr(cache_utils, name)}
_BY_CLASS[GrowingLayer] = ("slots", GrowingLayer.fork)

# Kinds that a model of the library brings along, in its own module.
_OF_MODELS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "DeepseekV4HCACache": ("cloned", _states_cloned),
    "DeepseekV4CSACache": ("cloned", _states_cloned),
    "MiniMaxM3VLSparseCache": ("shared", copy.copy),  # so called up to Transformers 5.23
    "MiniMaxM3VLSparseCacheLayer": ("shared", copy.copy),
}


def _kind(layer: Any, index: int) -> tuple[str, Callable[[Any], Any]]:
    # By exact class: a subclass may update in place what its parent rebinds.
    owner = type(layer)
    kind = _BY_CLASS.get(owner)
    if kind is None and owner.__module__.startswith("transformers.models."):
        kind = _OF_MODELS.get(owner.__name__)
    if kind is None:
        raise UnsupportedCache(
            f"layer {index} of the cache is a {type(layer).__name__}, which anydepth does not know how to fork; "
            "report the layer kind"
        )
    return kind


def fork(cache: Cache) -> Cache:
    """Return a cache that can be advanced without disturbing `cache`; O(layers), whatever the depth.

    Raises UnsupportedCache, with the layer's name, for a kind of cache or layer that cannot be forked safely.
    """
    if not isinstance(getattr(cache, "layers", None), list):
        raise UnsupportedCache(f"a {type(cache).__name__} is not a list of cache layers and cannot be forked")
    if getattr(cache, "offloading", False):
        raise UnsupportedCache(
            "an offloaded cache moves layers while it is read and cannot be forked; keep it on device"
        )
    twin = copy.copy(cache)
    twin.layers = [_kind(layer, index)[1](layer) for index, layer in enumerate(cache.layers)]
    return twin


def fork_kinds(cache: Cache) -> list[tuple[str, str, int]]:
    """`(layer class, how it is forked, how many)` for the layers of `cache`."""
    counts = Counter((type(layer).__name__, _kind(layer, i)[0]) for i, layer in enumerate(cache.layers))
    return [(name, kind, count) for (name, kind), count in counts.items()]


def select_rows(cache: Cache, rows: list[int]) -> Cache:
    """A fork that keeps only these rows of the batch (copies their states)."""
    twin = fork(cache)
    twin.reorder_cache(torch.tensor(rows))  # pyright: ignore[reportArgumentType] each layer moves it to its device
    return twin


def can_rewind(cache: Cache) -> bool:
    """True if `Cache.crop` can take tokens back from a fork of `cache`.

    A sliding layer that has passed its window has forgotten them, and recurrent layers never could.
    """
    layers: list[Any] = cache.layers
    for layer in layers:
        rebinds = _kind(layer, 0)[1] in (copy.copy, GrowingLayer.fork)
        croppable = getattr(layer, "is_croppable", hasattr(layer, "crop"))  # told since Transformers 5.17
        if not rebinds or not croppable or isinstance(layer, _QUANTIZED):
            return False
        if getattr(layer, "is_sliding", False) and layer.get_seq_length() >= layer.sliding_window:
            return False
    return True


_QUANTIZED = getattr(cache_utils, "BaseQuantizedLayer", cache_utils.QuantizedLayer)  # no such base in Transformers 5.19
