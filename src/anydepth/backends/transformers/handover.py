"""Find out what `generate` hands to a model's `forward`, without a forward pass."""

import warnings
from threading import get_ident
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache

from anydepth.backends.transformers.blocks import text_config
from anydepth.errors import UnsupportedModel


class _Reached(Exception):
    """Ends a call of `generate` as soon as it calls `forward`."""


def hands_over(model: Any, name: str) -> bool:
    """True if `generate` hands the tokens, and the cache it is given as `name`, to `forward` as they are.

    Raises UnsupportedModel if `generate` fails before it calls `forward`.
    """
    cache = DynamicCache(config=text_config(model))
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    arguments = _first_arguments(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), name: cache})
    tokens = arguments.get("input_ids")
    return arguments.get(name) is cache and tokens is not None and torch.equal(tokens, ids)


def _first_arguments(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the first call of `forward` by `generate`; empty where it makes none."""
    seen: dict[str, Any] = {}
    mine = get_ident()

    def look(_module: Any, _args: Any, arguments: dict[str, Any]) -> None:
        if get_ident() == mine:  # else it is another thread's pass over the same model
            seen.update(arguments)
            raise _Reached

    hook = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of a name that is being tried
            model.generate(**inputs, **_PLAIN)
    except _Reached:
        pass
    except Exception as error:
        raise UnsupportedModel(
            f"generate() of {type(model).__name__} fails before its first forward pass, with a "
            f"{type(error).__name__}: {error}; mend the model or its generation config"
        ) from error
    finally:
        hook.remove()
    return seen


# One greedy token, whatever the model's generation config asks for: its fields are reset one by one.
_PLAIN: dict[str, Any] = {name: None for name in vars(GenerationConfig()) if not name.startswith("_")} | {
    "max_new_tokens": 1,
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "use_cache": True,
    "pad_token_id": 0,
}
