"""Write sampling options, by their names in Transformers' `generate`, as SGLang's sampling parameters."""

from collections.abc import Mapping
from typing import Any

from anydepth.errors import ConfigError

TAKEN = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "min_new_tokens",
    "stop_strings",
    "eos_token_id",
)
"""Options of `generate` that SGLang has too."""

_DEFAULTS: Mapping[str, Any] = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
"""What `generate` of Transformers does where neither the caller nor the model says anything."""

_OF_NO_EFFECT = frozenset(
    {"bos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version", "use_cache"}
    | {"cache_implementation", "max_length", "max_new_tokens"}
)
"""Fields of a model's generation config that change no token of an answer that SGLang writes."""

_NEUTRAL: Mapping[str, Any] = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), 1),
    **dict.fromkeys(("typical_p", "encoder_repetition_penalty", "length_penalty", "guidance_scale"), 1.0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length"), 0),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "diversity_penalty"), 0.0),
    "use_cache": True,
}
"""Values that ask for nothing, besides None and False."""


def sampling_params(defaults: Mapping[str, Any], options: Mapping[str, Any], ends: frozenset[int]) -> dict[str, Any]:
    """The sampling parameters of a request, but for its length and its seed.

    Each parameter is given, so that the server's `--preferred-sampling-params` count for nothing.

    Args:
        defaults: Fields of the model's generation config.
        options: The caller's options, which come first.
        ends: Tokens at which the server ends a turn by itself.

    Raises:
        ConfigError: An option, or a field of the generation config, is none of `TAKEN` and asks for something; or
            `eos_token_id` leaves out a token at which the server ends.
    """
    for name, value in options.items():
        _refuse_unless_taken(name, value, "")
    for name, value in defaults.items():
        if name not in options and name not in _OF_NO_EFFECT and not name.startswith("_"):
            _refuse_unless_taken(name, value, " (the model's generation config asks for it)")
    chosen = {**_DEFAULTS, **{name: value for name, value in defaults.items() if value is not None}, **options}
    return {
        **_distribution(chosen),
        "repetition_penalty": _or(chosen.get("repetition_penalty"), 1.0),
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "min_new_tokens": _or(chosen.get("min_new_tokens"), 0),
        "stop": _listed(chosen.get("stop_strings")),
        "stop_token_ids": _end_tokens(options.get("eos_token_id"), ends),
        "ignore_eos": False,
        "n": 1,
    }


def _distribution(chosen: Mapping[str, Any]) -> dict[str, Any]:
    if not chosen["do_sample"]:
        return {"temperature": 0.0, "top_k": -1, "top_p": 1.0, "min_p": 0.0}
    return {
        "temperature": _or(chosen["temperature"], 1.0),
        "top_k": chosen["top_k"] or -1,
        "top_p": _or(chosen["top_p"], 1.0),
        "min_p": _or(chosen.get("min_p"), 0.0),
    }


def _refuse_unless_taken(name: str, value: Any, source: str) -> None:
    if name in TAKEN or value is None or value is False or value == _NEUTRAL.get(name, value is None):
        return
    if name in ("max_length", "max_new_tokens"):
        raise ConfigError(f"{name} is set by the guard; use max_new_tokens of generate() or stream()")
    raise ConfigError(
        f"{name}={value!r}{source} cannot be asked of SGLang; pass {name}=None. It takes {', '.join(TAKEN)}"
    )


def _end_tokens(given: Any, ends: frozenset[int]) -> list[int]:
    if given is None:
        return sorted(ends)
    wanted = {int(each) for each in (given if isinstance(given, list | tuple) else [given])}
    if ends - wanted:
        raise ConfigError(
            f"eos_token_id={given!r} leaves out {sorted(ends - wanted)}, where SGLang ends a turn in any case; "
            f"give {sorted(ends | wanted)}"
        )
    return sorted(wanted)


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
