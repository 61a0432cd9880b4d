"""Find out what `generate` hands to a model's `forward`, without a forward pass."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from threading import get_ident
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from anydepth.backends.transformers.blocks import text_config
from anydepth.backends.transformers.generation_options import PLAIN
from anydepth.errors import ConfigError, UnsupportedModel

_TWO_TOKENS = [[0, 0]]
_PADDED = [[0, 1]]


class _Reached(Exception):
    """Ends a call of `generate` as soon as it calls `forward`."""


def hands_over(model: Any, name: str) -> bool:
    """True if `generate` hands the tokens, and the cache it is given as `name`, to `forward` as they are.

    Raises UnsupportedModel if `generate` fails before it calls `forward`.
    """
    cache = DynamicCache(config=text_config(model))
    try:
        arguments = _first_arguments(model, {**PLAIN, "max_new_tokens": 1, "pad_token_id": 0, name: cache})
    except Exception as error:
        raise UnsupportedModel(
            f"generate() of {type(model).__name__} fails before its first forward pass, with a "
            f"{type(error).__name__}: {error}; mend the model or its generation config"
        ) from error
    tokens = arguments.get("input_ids")
    return arguments.get(name) is cache and tokens is not None and tokens.tolist() == _TWO_TOKENS


def hands_positions(model: Any, name: str) -> bool:
    """True if `generate` hands `forward` the positions of a padded text.

    Where it does not, the model counts the padding on the left as text, and every later token has another position than
    the row alone would give it.

    Args:
        model: A model for which `hands_over` is true.
        name: What `forward` calls its cache.
    """
    cache = DynamicCache(config=text_config(model))
    options = {**PLAIN, "max_new_tokens": 1, "pad_token_id": 0, name: cache}
    try:
        return _first_arguments(model, options, _PADDED).get("position_ids") is not None
    except Exception:  # it takes no padded text at all, and says so itself
        return True


def try_options(model: Any, name: str, options: Mapping[str, Any]) -> None:
    """Raise ConfigError with the library's own words if `generate` refuses the values of these options.

    It would do so at the first token, where nobody looks for a mistake of that kind.

    Args:
        model: A model whose `generate` takes its cache as `name`.
        name: The argument's name.
        options: What `vet_options` gave.
    """
    cache = DynamicCache(config=text_config(model))
    ours = {"max_new_tokens": 1, "cache_implementation": None, "stop_strings": None, name: cache}
    given = {key: value for key, value in options.items() if key not in ("cache_config", "stopping_criteria")}
    try:
        _first_arguments(model, {"pad_token_id": 0, **given, **ours})
    except Exception as error:
        names = ", ".join(sorted(given)) or "the model's own generation config"
        raise ConfigError(f"transformers' generate() refuses the options ({names}): {error}") from error


def _first_arguments(
    model: Any, options: Mapping[str, Any], mask: Sequence[Sequence[int]] = ((1, 1),)
) -> dict[str, Any]:
    """Keyword arguments of the first call of `forward` by `generate`; empty where it makes none."""
    ids = torch.tensor(_TWO_TOKENS, device=model.device)
    seen: dict[str, Any] = {}
    mine = get_ident()

    def look(_module: Any, _args: Any, arguments: dict[str, Any]) -> None:
        if get_ident() == mine:  # else it is another thread's pass over the same model
            seen.update(arguments)
            raise _Reached

    hook = model.register_forward_pre_hook(look, with_kwargs=True)
    with hook, suppress(_Reached), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to warn of, the real call does
        model.generate(input_ids=ids, attention_mask=torch.tensor(mask, device=ids.device), **options)
    return seen
