"""Feed new tokens to a model over an existing cache."""

import inspect
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, LinearAttentionCacheLayerMixin

from anydepth.backends.transformers.blocks import NOT_HERE, text_config
from anydepth.backends.transformers.handover import hands_over, hands_positions
from anydepth.errors import UnsupportedModel

# What `forward` calls its cache. Since Transformers 5.24 it is `cache` for all models; before, one of the others.
CACHE_NAMES = ("cache", "past_key_values", "cache_params")


class ForwardInputs:
    """How a model's `forward` takes new tokens: the name of its cache, and how many tokens it takes at once.

    Raises UnsupportedModel for an encoder, for a model whose `forward` takes no Transformers Cache, or does not get it
    from `generate`, and for one whose `generate` loses the text where position factors change (longrope).

    Attributes:
        cache_name: What `forward` and `generate` call the cache.
        takes_positions: Whether `forward` takes the positions of the new tokens.
        counts_padding: Whether `generate` leaves the positions of a padded text to `forward`, which counts the padding.
        keeps_logits: Whether `forward` can leave out the logits that nobody needs.
    """

    def __init__(self, model: Any) -> None:
        names = inspect.signature(model.forward).parameters
        cache_name = next((name for name in CACHE_NAMES if name in names), None)
        if cache_name is None:
            raise UnsupportedModel(
                f"{type(model).__name__} keeps its state outside of a Transformers Cache, so it cannot be forked; "
                f"{NOT_HERE}"
            )
        if _is_encoder(model):
            raise UnsupportedModel(
                f"{type(model).__name__} reads a text in both directions (is_decoder={text_config(model).is_decoder} "
                "in its config.json), so it cannot write an answer token by token; give a checkpoint of a decoder, "
                "which has is_decoder=True, or, where it has, use a newer Transformers"
            )
        # The name alone will not do: XLM has a `cache`, and its `generate` adds a token to every text; a model whose
        # code is not the library's may still say `past_key_values` where the library hands over a `cache`.
        if not hands_over(model, cache_name):
            raise UnsupportedModel(
                f"generate() of {type(model).__name__} does not hand the tokens and the cache that it is given on to "
                f"forward({cache_name}=...) as they are (Transformers {transformers.__version__}), so its answers "
                f"cannot be forked; {NOT_HERE}"
            )
        self._model, self.cache_name = model, cache_name
        self.takes_positions = "position_ids" in names
        self.counts_padding = self.takes_positions and not hands_positions(model, cache_name)
        self.keeps_logits = "logits_to_keep" in names
        if self.switches_at is not None and _loses_text(model, cache_name, self.switches_at):
            raise UnsupportedModel(
                f"{type(model).__name__} has other position factors beyond {self.switches_at} tokens, where generate() "
                f"of Transformers {transformers.__version__} goes on from the last token alone; run: pip install "
                "'transformers>=5.20', or take a checkpoint without longrope"
            )

    @cached_property
    def slices_history(self) -> bool:
        """True if `generate` takes the whole sequence and skips what the cache holds.

        Not so for pure Mamba, whose cache does not count its tokens.
        """
        layers = self._cache().layers
        return self.cache_name != "cache_params" and any(isinstance(layer, CacheLayerMixin) for layer in layers)

    @cached_property
    def switches_at(self) -> int | None:
        """Number of tokens beyond which a text has other position factors from its first token on (longrope).

        States of a shorter text are of no use to a longer one there: `generate` runs such a text anew. None for other
        models.
        """
        config = text_config(self._model)
        rope = getattr(config, "rope_parameters", None) or {}
        for each in (rope, *(part for part in rope.values() if isinstance(part, dict))):
            if each.get("rope_type") == "longrope":
                return each.get("original_max_position_embeddings") or config.original_max_position_embeddings
        return None

    def starts_anew(self, cached: int, length: int) -> bool:
        """True if a text of `length` tokens cannot be continued from the states of its first `cached` ones."""
        return self.switches_at is not None and 0 < cached <= self.switches_at < length

    def same_factors(self, *lengths: int) -> bool:
        """True if texts of all these lengths have the same position factors."""
        return len({self.starts_anew(1, length) for length in lengths}) == 1

    @cached_property
    def masks_by_index(self) -> bool:
        """True if a layer masks by the index of a key, and not with the mask it is given (GPT-Neo's local attention).

        Such a layer holds a square of booleans that hides more than what comes later.
        """
        squares = [each for each in self._model.buffers() if each.dtype == torch.bool and each.ndim >= 2]
        return any(
            each.shape[-1] == each.shape[-2] and not torch.equal(each, torch.ones_like(each).tril()) for each in squares
        )

    def build(self, ids: torch.Tensor, cache: Cache | None, mask: torch.Tensor) -> dict[str, Any]:
        """Arguments for the new tokens `ids` `[b, t]`; `mask` `[b, cached + t]` marks what is no padding."""
        new = ids.shape[1]
        arguments: dict[str, Any] = {"input_ids": ids, "use_cache": True, self.cache_name: cache}
        # No mask where there is no padding: attention then takes its faster path, as `generate` does.
        if not bool(mask.all()):
            arguments["attention_mask"] = mask if self.slices_history else mask[:, -new:]
        if self.takes_positions and not self.counts_padding:
            arguments["position_ids"] = (mask.cumsum(-1)[:, -new:] - 1).clamp(min=0)
        return arguments

    def steps(self, ids: torch.Tensor, cache: Cache | None, mask: torch.Tensor) -> Iterator[dict[str, Any]]:
        """Arguments of the forward passes that feed `ids`: one for all of them, or one per token where it must be."""
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
        if not any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in self._cache().layers):
            return True
        ids = (torch.arange(8, device=self._model.device) * 7 % text_config(self._model).vocab_size)[None]
        whole = self._last_logits([ids])
        singly = (self._last_logits([ids[:, :4], *ids[:, 4:].split(1, 1)]) - whole).abs().max()
        chunked = (self._last_logits([ids[:, :4], ids[:, 4:]]) - whole).abs().max()
        return bool(chunked <= 10 * singly + 1e-4 * whole.abs().max())

    def _last_logits(self, parts: list[torch.Tensor]) -> torch.Tensor:
        cache = self._cache()
        fed, logits = 0, torch.empty(0)
        with torch.no_grad():
            for part in parts:
                fed += part.shape[1]
                logits = self._model(**self.build(part, cache, torch.ones_like(part[:, :1]).expand(-1, fed))).logits
        return logits[:, -1].float()

    def _cache(self) -> DynamicCache:
        return DynamicCache(config=text_config(self._model))


def left_pad(rows: list[torch.Tensor], padding: int) -> torch.Tensor:
    """The rows `[t]` as one tensor `[b, longest]`, shorter ones filled with `padding` on the left."""
    return pad_sequence(rows, batch_first=True, padding_value=padding, padding_side="left")


def _is_encoder(model: Any) -> bool:
    """True if no layer is causal. The configuration alone will not do: that of GPT-NeoX says is_decoder=False."""
    said = getattr(text_config(model), "is_decoder", None)
    causal = [each.is_causal for each in model.modules() if hasattr(each, "is_causal")]
    if causal or said is None:
        return said is False and bool(causal) and not any(causal)
    return _looks_ahead(model)


def _looks_ahead(model: Any) -> bool:
    """True if a later token changes the logits of the first one; tried once, where layers do not say.

    RoFormer's do not. In Transformers 5.16 it looks ahead even as a decoder.
    """
    ids = torch.arange(8, device=model.device)[None]
    other = torch.cat([ids[:, :-1], ids[:, -1:] + 1], 1)
    with torch.no_grad():
        one, two = (model(input_ids=each, attention_mask=torch.ones_like(each)).logits[0, 0] for each in (ids, other))
    return bool((one - two).abs().max() > 1e-2 * one.abs().max())


def _loses_text(model: Any, cache_name: str, length: int) -> bool:
    """True if `generate` drops the cache of `length` tokens at the next one, and feeds that token alone.

    Phi-3 does so up to Transformers 5.19, and Phi-4-multimodal in 5.24 still.
    """
    cache = DynamicCache(config=text_config(model))
    cache.get_seq_length = lambda *_: length  # type: ignore[method-assign]
    ids = torch.zeros(1, length + 1, dtype=torch.long, device=model.device)
    given = {"attention_mask": torch.ones_like(ids), "use_cache": True, "next_sequence_length": 1, cache_name: cache}
    found = model.prepare_inputs_for_generation(ids, **given)
    return found.get(cache_name) is None and found["input_ids"].shape[1] == 1
