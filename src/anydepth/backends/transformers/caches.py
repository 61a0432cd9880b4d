"""Make the KV cache that a session decodes on, of the kind the options ask for."""

from typing import Any

from transformers.cache_utils import DynamicCache, DynamicLayer, QuantizedCache, StaticCache

from anydepth.backends.transformers.blocks import text_config
from anydepth.backends.transformers.growing import GrowingLayer
from anydepth.errors import ConfigError, MissingExtra

LOOK_AHEAD_ROOM = 64
"""Slots that a static cache keeps free for the look-ahead of a check."""


def new_cache(model: Any, length: int, options: dict[str, Any]) -> Any:
    """Make a cache for `length` tokens; takes `cache_implementation` and `cache_config` out of `options`.

    Raises ConfigError for a kind that cannot be forked (`offloaded`) or does not exist, or a `cache_config` that the
    library refuses; MissingExtra where a quantised cache needs a package that is not installed.
    """
    defaults = model.generation_config
    source = "" if "cache_implementation" in options else " in the model's generation config"
    kind = options.pop("cache_implementation", defaults.cache_implementation)
    config = text_config(model)
    settings = dict(options.pop("cache_config", defaults.cache_config) or {})
    if defaults.cache_implementation is not None:
        options["cache_implementation"] = None  # `generate` refuses a default of its own beside the cache it is given
    if kind in (None, "dynamic", "hybrid"):
        cache = DynamicCache(config=config)
        cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        return cache
    if kind == "static":
        return StaticCache(config=config, max_cache_len=length + LOOK_AHEAD_ROOM)
    if kind == "quantized":
        return _quantized(config, settings)
    raise ConfigError(f"cache_implementation{source} is {kind!r}; choose dynamic, static or quantized")


def _quantized(config: Any, settings: dict[str, Any]) -> QuantizedCache:
    given = {name: value for name, value in settings.items() if name != "config"}  # 5.16's `generate` adds its own
    try:
        return QuantizedCache(**{"backend": "quanto", **given, "config": config})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cache_config={given!r} is no quantised cache of transformers: {error}") from error
    except ImportError as error:
        raise MissingExtra(f"cache_config={given!r} needs a package that is not installed: {error}") from error
