"""Vet the sampling options of `model.generate`, so that decoding by windows gives what one call would give."""

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from anydepth.errors import ConfigError, UnsupportedModel

_OURS = {"max_new_tokens", "max_length", "streamer", "input_ids", "inputs", "attention_mask", "past_key_values"}
_CALLABLES = {"logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"}
_ONE_STREAM = "it does not extend one stream of tokens that could be held back and checked"
_SPANS_CALLS = "its state spans the whole answer and would start anew at each checkpoint"

# Option -> (values that are harmless, why any other value cannot be guarded).
_REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((None, 1), _ONE_STREAM),
    "num_return_sequences": ((None, 1), "pass the prompt several times in a batch instead"),
    "penalty_alpha": ((None, 0), _ONE_STREAM),
    "dola_layers": ((None,), _ONE_STREAM),
    "prompt_lookup_num_tokens": ((None,), _ONE_STREAM),
    "assistant_model": ((None,), _ONE_STREAM),
    "assistant_early_exit": ((None,), _ONE_STREAM),
    "custom_generate": ((None,), _ONE_STREAM),
    "use_cache": ((None, True), "a check forks the KV cache, so there must be one"),
    "guidance_scale": ((None, 1, 1.0), _SPANS_CALLS),
    "watermarking_config": ((None,), _SPANS_CALLS),
    "forced_eos_token_id": ((None,), _SPANS_CALLS),
    "exponential_decay_length_penalty": ((None,), _SPANS_CALLS),
    "max_time": ((None,), _SPANS_CALLS),
    "token_healing": ((None, False), "it rewrites the prompt"),
    "return_dict_in_generate": ((None, False), "the guard returns an Answer"),
    "output_scores": ((None, False), "the guard returns an Answer"),
    "output_logits": ((None, False), "the guard returns an Answer"),
    "output_attentions": ((None, False), "the guard returns an Answer"),
    "output_hidden_states": ((None, False), "the guard returns an Answer"),
}

# Neutral values of the options that look at the tokens so far; what they are called in GenerationConfig.
_HISTORY = {
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "prefix_allowed_tokens_fn": (None,),
    "logits_processor": (None,),
}


def vet_options(defaults: GenerationConfig, options: Mapping[str, Any], *, sees_history: bool) -> dict[str, Any]:
    """Return the options to pass to every call of `generate`.

    Raises ConfigError or UnsupportedModel, with its name and the reason, for one that cannot be guarded.

    Args:
        defaults: The model's own generation config, whose values count where an option is not given.
        options: The caller's options, by their names in `GenerationConfig`.
        sees_history: False where the model is fed the new tokens only (pure recurrent models), so that an option that
            looks at earlier tokens would look at too few.
    """
    known = vars(GenerationConfig()).keys() | _CALLABLES | _REFUSED.keys()
    for name in options:
        if name in _OURS:
            raise ConfigError(f"{name} is set by the guard; use max_new_tokens of generate() or stream()")
        if name not in known or name.startswith("_"):
            raise ConfigError(f"{name} is not an option of transformers' generate(); see GenerationConfig")
    for name, (harmless, why) in _REFUSED.items():
        value = _effective(name, options, defaults)
        if not any(value is good or (value == good and type(value) is not bool) for good in harmless):
            raise ConfigError(f"{name}={value!r} cannot be guarded: {why}")
    if not sees_history:
        for name, neutral in _HISTORY.items():
            value = _effective(name, options, defaults)
            if value not in neutral:
                raise UnsupportedModel(
                    f"{name}={value!r} looks at earlier tokens, which a purely recurrent model is not fed again; "
                    "leave it out"
                )
    return {name: value for name, value in options.items() if name not in _REFUSED}


def _effective(name: str, options: Mapping[str, Any], defaults: GenerationConfig) -> Any:
    return options.get(name, getattr(defaults, name, None))


def end_token_ids(defaults: GenerationConfig, options: Mapping[str, Any]) -> frozenset[int]:
    """Ids that end a turn, from the options or the model's generation config."""
    value = _effective("eos_token_id", options, defaults)
    if value is None:
        return frozenset()
    return frozenset([int(value)] if isinstance(value, int) else [int(each) for each in value])
