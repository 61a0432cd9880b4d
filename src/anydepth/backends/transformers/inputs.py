"""Feed new tokens to a model over an existing cache."""

import inspect
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, LinearAttentionCacheLayerMixin

from anydepth.backends.transformers.blocks import text_config
from anydepth.errors import UnsupportedModel


class ForwardInputs:
    """Knows how a model's `forward` wants new tokens: what it calls its cache, and how many it can take at once."""

    def __init__(self, model: Any) -> None:
        names = inspect.signature(model.forward).parameters
        found = [name for name in ("past_key_values", "cache_params") if name in names]
        if not found:
            raise UnsupportedModel(
                f"{type(model).__name__} keeps its state outside of a Transformers Cache, so it cannot be forked; "
                "guard it through a server with a look-ahead detector"
            )
        self._model = model
        self.cache_name = found[0]
        self.takes_positions = "position_ids" in names
        self.keeps_logits = "logits_to_keep" in names

    @property
    def slices_history(self) -> bool:
        """True if `generate` takes the whole sequence and skips what the cache holds (not so for pure Mamba)."""
        return self.cache_name == "past_key_values"

    def build(self, ids: torch.Tensor, cache: Cache | None, mask: torch.Tensor) -> dict[str, Any]:
        """Arguments for the new tokens `ids` `[b, t]`; `mask` `[b, cached + t]` marks what is no padding."""
        new = ids.shape[1]
        arguments: dict[str, Any] = {"input_ids": ids, "use_cache": True, self.cache_name: cache}
        # No mask where there is no padding: attention then takes its faster path, as `generate` does.
        if not bool(mask.all()):
            arguments["attention_mask"] = mask if self.slices_history else mask[:, -new:]
        if self.takes_positions:
            arguments["position_ids"] = (mask.cumsum(-1)[:, -new:] - 1).clamp(min=0)
        return arguments

    def steps(self, ids: torch.Tensor, cache: Cache | None, mask: torch.Tensor) -> Iterator[dict[str, Any]]:
        """Arguments of the forward passes that feed `ids`: one for all of them, or one a token where it must be."""
        new = ids.shape[1]
        if self.takes_chunks or mask.shape[1] == new:
            yield self.build(ids, cache, mask)
            return
        for done in range(new):
            yield self.build(ids[:, done : done + 1], cache, mask[:, : mask.shape[1] - new + done + 1])

    @cached_property
    def takes_chunks(self) -> bool:
        """True if several tokens can be fed at once over a cache that is not empty.

        Some recurrent layers (Jamba's Mamba in Transformers 5) start such a chunk from an empty state and say nothing,
        so recurrent models are tried once on eight tokens.
        """
        config = text_config(self._model)
        layers = DynamicCache(config=config).layers
        if not any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers):
            return True
        ids = (torch.arange(8, device=self._model.device) * 7 % config.vocab_size)[None]
        whole = self._last_logits([ids])
        singly = (self._last_logits([ids[:, :4], *ids[:, 4:].split(1, 1)]) - whole).abs().max()
        chunked = (self._last_logits([ids[:, :4], ids[:, 4:]]) - whole).abs().max()
        return bool(chunked <= 10 * singly + 1e-4 * whole.abs().max())

    def _last_logits(self, parts: list[torch.Tensor]) -> torch.Tensor:
        cache = DynamicCache(config=text_config(self._model))
        fed, logits = 0, torch.empty(0)
        with torch.no_grad():
            for part in parts:
                fed += part.shape[1]
                logits = self._model(**self.build(part, cache, torch.ones_like(part[:, :1]).expand(-1, fed))).logits
        return logits[:, -1].float()
