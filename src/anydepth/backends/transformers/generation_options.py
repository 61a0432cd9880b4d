"""Vet the sampling options of `model.generate`, so that decoding by windows gives what one call would give."""

from collections.abc import Mapping
from typing import Any

import transformers
from transformers import GenerationConfig

from anydepth.errors import ConfigError, UnsupportedModel

_SET_BY_US = {
    **dict.fromkeys(("max_new_tokens", "max_length"), "use max_new_tokens of generate() or stream()"),
    **dict.fromkeys(("input_ids", "inputs", "inputs_embeds", "attention_mask", "position_ids"), "pass messages"),
    **dict.fromkeys(("cache", "past_key_values", "cache_params"), "choose its kind with cache_implementation"),
    "streamer": "read the events of stream()",
    "tokenizer": "leave it out",
    "generation_config": "pass its fields as options",
}
_CALLABLES = {"logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"}
_PARAMETERS = {"assistant_model", "custom_generate"}  # of `generate`, and no fields of GenerationConfig

_ONE_STREAM = "it does not extend one stream of tokens that could be held back and checked"
_SPANS_CALLS = "its state spans the whole answer and would start anew at each checkpoint"
_SEES_PROMPT = "it looks at the prompt, to which the answer so far would belong at each checkpoint"
_AN_ANSWER = "the guard returns an Answer"

# Option -> (values that are harmless, why any other cannot be guarded). The first value is what `generate` gets for any
# of them, also against another one in the model's generation config.
_REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((1, None), _ONE_STREAM),
    "num_beam_groups": ((1, None), _ONE_STREAM),
    "constraints": ((None,), _ONE_STREAM),
    "force_words_ids": ((None,), _ONE_STREAM),
    "num_return_sequences": ((1, None), "pass the prompt several times in a batch instead"),
    "penalty_alpha": ((None, 0), _ONE_STREAM),
    "dola_layers": ((None,), _ONE_STREAM),
    "prompt_lookup_num_tokens": ((None,), _ONE_STREAM),
    "assistant_model": ((None,), _ONE_STREAM),
    "assistant_early_exit": ((None,), _ONE_STREAM),
    "use_mtp": ((None, False), _ONE_STREAM),
    "speculation_type": ((None,), _ONE_STREAM),
    "is_assistant": ((None, False), _ONE_STREAM),
    "custom_generate": ((None,), _ONE_STREAM),
    "continuous_batching_config": ((None,), _ONE_STREAM),
    "use_cache": ((True,), "a check forks the KV cache, so there must be one"),
    "guidance_scale": ((None, 1), _SPANS_CALLS),
    "watermarking_config": ((None,), _SPANS_CALLS),
    "forced_eos_token_id": ((None,), _SPANS_CALLS),
    "exponential_decay_length_penalty": ((None,), _SPANS_CALLS),
    "max_time": ((None,), _SPANS_CALLS),
    "encoder_repetition_penalty": ((1.0, None), _SEES_PROMPT),
    "encoder_no_repeat_ngram_size": ((0, None), _SEES_PROMPT),
    "token_healing": ((None, False), "it rewrites the prompt"),
    "return_dict_in_generate": ((False, None), _AN_ANSWER),
    "output_scores": ((False, None), _AN_ANSWER),
    "output_logits": ((False, None), _AN_ANSWER),
    "output_attentions": ((False, None), _AN_ANSWER),
    "output_hidden_states": ((False, None), _AN_ANSWER),
}

# Neutral values of the options that look at the tokens so far; what they are called in GenerationConfig.
_HISTORY: Mapping[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "forced_bos_token_id": (None,),
    "prefix_allowed_tokens_fn": (None,),
    "logits_processor": (None,),
}

# Options that each call of `generate` gets as they are: they look at one token's distribution, or at the tokens so far,
# or have no effect on what is not refused above. The cache's, `stop_strings` and `begin_suppress_tokens` are the
# session's to carry out.
# fmt: off
_PASSED = frozenset({
    "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "suppress_tokens", "begin_suppress_tokens", "renormalize_logits", "remove_invalid_values", "stop_strings",
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id",
    "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size",
    "compile_config", "disable_compile", "transformers_version",
    "early_stopping", "length_penalty", "diversity_penalty", "low_memory",
    "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight", "max_matching_ngram_size",
})
# fmt: on

_FIELDS = frozenset(name for name in vars(GenerationConfig()) if not name.startswith("_"))

PLAIN: Mapping[str, Any] = dict.fromkeys(sorted(_FIELDS)) | {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "use_cache": True,
}
"""Options of a greedy call of `generate` that does nothing of what a model's generation config may ask for."""


def vet_options(defaults: GenerationConfig, options: Mapping[str, Any], *, sees_history: bool) -> dict[str, Any]:
    """Return the options to pass to every call of `generate`.

    Raises ConfigError or UnsupportedModel, with its name, the reason and a remedy, for one that cannot be guarded.

    Args:
        defaults: The model's own generation config, whose values count where an option is not given.
        options: The caller's options, by their names in `GenerationConfig`.
        sees_history: False where the model is fed the new tokens only (pure recurrent models), so that an option that
            looks at earlier tokens would look at too few.
    """
    for name in options:
        if name in _SET_BY_US:
            raise ConfigError(f"{name} is set by the guard; {_SET_BY_US[name]}")
        if name not in _FIELDS | _CALLABLES | _PARAMETERS:
            raise ConfigError(f"{name} is not an option of transformers' generate(); see GenerationConfig")
    effective = vars(defaults) | dict(options)
    for name in sorted(unlisted_fields()):
        if (value := effective.get(name)) is not None:
            raise ConfigError(
                f"{name}={value!r}{_source(name, options)} is new in Transformers {transformers.__version__}, and this "
                f"anydepth cannot say whether it can be guarded; pass {name}=None"
            )
    passed = dict(options)
    for name, (harmless, why) in _REFUSED.items():
        value = effective.get(name)
        if name not in options and value is None:
            continue  # the library's own default, which is harmless
        if not any(value is good or (value == good and type(value) is not bool) for good in harmless):
            remedy = f"pass {name}={harmless[0]!r}" + (
                "" if name in options else " or set it in generation_config.json"
            )
            raise ConfigError(f"{name}={value!r} cannot be guarded{_source(name, options)}: {why}; {remedy}")
        if name in options:
            passed[name] = harmless[0]
    if not sees_history:
        for name, neutral in _HISTORY.items():
            if (value := effective.get(name)) not in neutral:
                raise UnsupportedModel(
                    f"{name}={value!r}{_source(name, options)} looks at earlier tokens, which a purely recurrent model "
                    f"is not fed again; pass {name}={neutral[-1]!r}"
                )
    if (begin := effective.get("begin_suppress_tokens")) is not None:
        passed["begin_suppress_tokens"] = begin  # by name also where it is the model's, since only one window begins
    return passed


def unlisted_fields() -> frozenset[str]:
    """Fields of the installed library's GenerationConfig of which nobody has said how they are guarded."""
    return _FIELDS - _SET_BY_US.keys() - _REFUSED.keys() - _HISTORY.keys() - _PASSED


def _source(name: str, options: Mapping[str, Any]) -> str:
    return "" if name in options else " (the model's generation config asks for it)"
