"""Each field of the library's GenerationConfig: passed on, carried out or refused, and never dropped in silence."""

import functools
import re

import pytest
import torch
import transformers
from transformers import GenerationConfig

from anydepth.backends.protocol import CheckPoint
from anydepth.backends.transformers import generation_options as vetting
from anydepth.backends.transformers.endings import Endings
from anydepth.backends.transformers.generation_options import PLAIN, unlisted_fields, vet_options
from anydepth.errors import ConfigError, UnsupportedModel
from tests.contract.contract import MAX_NEW_TOKENS, LooksAhead, backend_of, prompt_of, run

# What a model's generation config may ask for, the caller's option that takes it back, and how it is refused without.
OVERRIDDEN = {
    "forced end": ({"forced_eos_token_id": 7}, {"forced_eos_token_id": None}),
    "beams": ({"num_beams": 4}, {"num_beams": 1}),
    "beams, by None": ({"num_beams": 4}, {"num_beams": None}),
    "no cache": ({"use_cache": False}, {"use_cache": True}),
    "a dict": ({"return_dict_in_generate": True}, {"return_dict_in_generate": False}),
    "a dict, by None": ({"return_dict_in_generate": True}, {"return_dict_in_generate": None}),
    "guidance": ({"guidance_scale": 3.0}, {"guidance_scale": 1.0}),
    "guidance, by None": ({"guidance_scale": 3.0}, {"guidance_scale": None}),
    "several answers": ({"num_return_sequences": 2, "do_sample": True}, {"num_return_sequences": 1}),
    "decaying length penalty": (
        {"exponential_decay_length_penalty": (3, 1.5)},
        {"exponential_decay_length_penalty": None},
    ),
    "the prompt's words": ({"encoder_repetition_penalty": 3.0}, {"encoder_repetition_penalty": 1.0}),
    "the prompt's n-grams": ({"encoder_no_repeat_ngram_size": 2}, {"encoder_no_repeat_ngram_size": 0}),
    "a time limit": ({"max_time": 0.0}, {"max_time": None}),
    "prompt look-up": ({"prompt_lookup_num_tokens": 3}, {"prompt_lookup_num_tokens": None}),
    "contrastive": ({"penalty_alpha": 0.6, "top_k": 4}, {"penalty_alpha": 0}),
    "states": ({"output_hidden_states": True}, {"output_hidden_states": False}),
}

# What a model's generation config may ask for that the guard carries out, and a caller's option that takes it back.
CARRIED_OUT = {
    "begin suppress": ({"begin_suppress_tokens": list(range(60, 250))}, {"begin_suppress_tokens": None}),
    "suppress": ({"suppress_tokens": list(range(10, 200))}, {"suppress_tokens": None}),
    "minimum": ({"min_new_tokens": 30, "eos_token_id": list(range(100, 140))}, {"min_new_tokens": None}),
    "n-grams": ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 0}),
    "penalty": ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.0}),
    "static cache": ({"cache_implementation": "static"}, {"cache_implementation": None}),
    "other ends": ({"eos_token_id": list(range(100, 140))}, {"eos_token_id": 2}),
    "no end": ({"eos_token_id": list(range(100, 140))}, {"eos_token_id": None}),
    "padding": ({"pad_token_id": 9}, {"pad_token_id": 3}),
}


def _backend(config: dict, family: str = "Llama"):
    backend = backend_of(family)
    for name, value in config.items():
        setattr(backend.model.generation_config, name, value)
    return backend


def _same_stream(backend, **options) -> tuple[int, ...]:
    """The answer of a bare `generate`, which the guarded one with look-aheads must be."""
    prompt = prompt_of(backend)
    asked = {"do_sample": True, "temperature": 1.5, **options}
    (plain,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, seed=5, **asked)
    (released,), (outcome,) = run(backend, [prompt], LooksAhead(), seed=5, **asked)
    assert released == plain
    assert outcome.generated == len(plain)
    return plain


@functools.cache
def _plain_stream() -> tuple[int, ...]:
    """The answer of a model whose generation config asks for nothing."""
    return _same_stream(backend_of("Llama"))


@pytest.mark.parametrize("case", OVERRIDDEN)
def test_what_cannot_be_guarded_is_refused_with_a_remedy_that_works(case):
    config, options = OVERRIDDEN[case]
    backend = _backend(config)
    (name,) = options
    with pytest.raises(ConfigError, match=rf"^{name}=.* cannot be guarded \(the model's .* asks for it\).*; pass") as e:
        backend.open([prompt_of(backend)], max_new_tokens=5)
    assert re.search(rf"; pass {name}=\S+ or set it in generation_config.json$", str(e.value))
    others = {key: value for key, value in config.items() if key != name}
    untouched = _same_stream(_backend(others)) if others else _plain_stream()
    # the bare `generate` does not take None for a number, the guard takes it for the library's default
    bare = {name: 1} if options[name] is None and name.startswith("num_") else options
    (plain,) = backend.unguarded(
        [prompt_of(backend)], max_new_tokens=MAX_NEW_TOKENS, seed=5, do_sample=True, temperature=1.5, **bare
    )
    (released,), _ = run(
        backend, [prompt_of(backend)], LooksAhead(), seed=5, do_sample=True, temperature=1.5, **options
    )
    assert released == plain == untouched


@pytest.mark.parametrize("case", CARRIED_OUT)
def test_what_the_generation_config_asks_for_is_done_and_can_be_taken_back(case):
    config, options = CARRIED_OUT[case]
    own = _same_stream(_backend(config))
    taken_back = _same_stream(_backend(config), **options)
    if case not in ("static cache", "padding"):  # which change no answer
        assert own != taken_back


def test_stop_strings_of_the_generation_config_end_the_answer_and_can_be_taken_back():
    whole = _plain_stream()
    backend = backend_of("Llama")
    backend.tokenizer.add_tokens(["abcdef"])  # with which the library's criterion tries every word
    backend.model.generation_config.stop_strings = [backend.decode_text(whole[9:10])]
    stopped = _same_stream(backend)
    assert stopped == whole[: len(stopped)] and len(stopped) <= 10
    assert _same_stream(backend, stop_strings=None) == whole


def test_stopping_criteria_see_the_text_from_its_beginning_on_a_recurrent_model():
    backend = backend_of("Mamba-2")
    prompt = prompt_of(backend)
    seen = []

    def criterion(ids, scores, **_):
        seen.append(tuple(ids[0].tolist()))
        return ids.new_zeros(len(ids)).bool()

    (released,), _ = run(backend, [prompt], LooksAhead(), do_sample=False, stopping_criteria=[criterion])
    assert seen == [(*prompt.ids, *released[:count]) for count in range(1, len(released) + 1)]


def test_a_token_that_the_library_takes_back_does_not_undo_an_ending():
    endings = Endings(frozenset({2}), [], [True, True, False], torch.zeros(3, 0, dtype=torch.long))
    assert not endings(torch.tensor([[5, 6], [5, 7], [5, 2]]), None).any()
    assert endings(torch.tensor([[5, 6, 8], [5, 7, 2], [5, 2, 2]]), None).all()
    endings(torch.tensor([[5, 6, 8, 2], [5, 7, 2, 9], [5, 2, 2, 9]]), None)
    assert endings.ended.tolist() == [False, True, False]


def test_forcing_the_first_token_is_refused_where_each_window_would_begin_anew():
    backend = _backend({"forced_bos_token_id": 7}, "Mamba-2")
    with pytest.raises(UnsupportedModel, match=r"forced_bos_token_id=7 .* pass forced_bos_token_id=None"):
        backend.open([prompt_of(backend)], max_new_tokens=5)
    backend.open([prompt_of(backend)], max_new_tokens=5, forced_bos_token_id=None).close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_cache": None}, r"use_cache=None cannot be guarded: .*; pass use_cache=True"),
        ({"use_mtp": True}, r"use_mtp=True cannot be guarded: .*; pass use_mtp=None"),
        ({"force_words_ids": [[5]]}, r"force_words_ids=\[\[5\]\] cannot be guarded"),
        (
            {"encoder_repetition_penalty": 1.2},
            "encoder_repetition_penalty=1.2 cannot be guarded: it looks at the prompt",
        ),
        ({"tokenizer": None}, "tokenizer is set by the guard; leave it out"),
        ({"cache": None}, "cache is set by the guard; choose its kind with cache_implementation"),
        (
            {"generation_config": GenerationConfig()},
            "generation_config is set by the guard; pass its fields as options",
        ),
        ({"_mask_length": 3}, "_mask_length is not an option"),
        ({"do_sample": True, "temperature": 0.0}, r"refuses the options \(do_sample, temperature\): .*temperature"),
        ({"do_sample": True, "top_k": -3}, "refuses the options .*top_k"),
        ({"bad_words_ids": [7]}, "refuses the options .*bad_words_ids"),
    ],
)
def test_a_value_that_cannot_be_is_refused_before_the_first_token(options, message):
    backend = backend_of("Llama")
    with pytest.raises(ConfigError, match=message):
        backend.open([prompt_of(backend)], max_new_tokens=5, **options)
    assert not backend.model._forward_pre_hooks


def test_a_look_ahead_is_greedy_whatever_the_generation_config_says():
    point = [CheckPoint(0, 0)]
    plain = backend_of("Llama").open([prompt_of(backend_of("Llama"), prefill=None)], max_new_tokens=9, do_sample=False)
    wanted = plain.look_ahead(point, 8, lambda text: False)
    config = {
        "num_beams": 4,
        "forced_eos_token_id": 7,
        "return_dict_in_generate": True,
        "use_cache": False,
        "stop_strings": ["w"],
        "guidance_scale": 2.0,
        "bad_words_ids": [[n] for n in range(20, 200)],
        "sequence_bias": [[[30], 50.0]],
        "do_sample": True,
    }
    backend = _backend(config)
    session = backend.replay(prompt_of(backend, prefill=None), (20, 21))
    session.decode(1)
    assert session.look_ahead(point, 8, lambda text: False) == wanted


def test_every_field_of_the_library_is_listed_in_one_place():
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert not unlisted_fields(), "say in options.py how these are guarded"
    ways = [vetting._SET_BY_US, vetting._REFUSED, vetting._HISTORY, vetting._PASSED]
    for name in fields:
        assert sum(name in way for way in ways) == 1, name
    assert PLAIN.keys() == fields


def test_a_field_that_a_newer_library_adds_is_refused_until_somebody_has_said_how_it_is_guarded(monkeypatch):
    monkeypatch.setattr(vetting, "_PASSED", vetting._PASSED - {"top_h"})
    message = rf"top_h=0.4.* is new in Transformers {re.escape(transformers.__version__)}.*; pass top_h=None"
    with pytest.raises(ConfigError, match=message):
        vet_options(GenerationConfig(), {"top_h": 0.4}, sees_history=True)
    with pytest.raises(ConfigError, match=message):
        vet_options(GenerationConfig(top_h=0.4), {}, sees_history=True)
    assert vet_options(GenerationConfig(top_h=0.4), {"top_h": None}, sees_history=True) == {"top_h": None}
