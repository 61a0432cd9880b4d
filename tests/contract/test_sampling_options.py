"""Sampling options of `generate`: windows give what one call gives, and what cannot be guarded is refused by name."""

import pytest
import torch
from transformers import LogitsProcessorList, TopKLogitsWarper

from anydepth.errors import ConfigError, PromptError, UnsupportedModel
from tests.contract.contract import MAX_NEW_TOKENS, backend_of, prompt_of, run, watcher_for

OPTIONS = {
    "top-p": {"do_sample": True, "top_p": 0.8},
    "min-p": {"do_sample": True, "min_p": 0.05},
    "typical": {"do_sample": True, "typical_p": 0.9},
    "repetition penalty": {"do_sample": False, "repetition_penalty": 1.3},
    "no repeated n-gram": {"do_sample": False, "no_repeat_ngram_size": 3},
    "bad words": {"do_sample": False, "bad_words_ids": [[20], [30]]},
    "min new tokens": {"do_sample": True, "min_new_tokens": 30, "temperature": 2.0},
    "begin suppress": {"do_sample": False, "begin_suppress_tokens": [40, 41, 42]},
    "logits processor": {"do_sample": True, "logits_processor": LogitsProcessorList([TopKLogitsWarper(5)])},
    "several ends": {"do_sample": True, "temperature": 2.0, "eos_token_id": [2, 50, 51, 52, 53, 54]},
    "chunked prefill": {"do_sample": False, "prefill_chunk_size": 4},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_windows_give_what_one_call_gives(name):
    backend = backend_of("Llama")
    prompt = prompt_of(backend)
    (plain,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, seed=11, **OPTIONS[name])
    (released,), (outcome,) = run(backend, [prompt], watcher_for(backend), seed=11, **OPTIONS[name])
    assert released == plain
    assert outcome.finish_reason == ("length" if len(plain) == MAX_NEW_TOKENS else "stop")


@pytest.mark.parametrize("batch", [1, 3])
def test_the_global_random_state_is_used_without_a_seed(batch):
    backend = backend_of("Llama")
    prompts = [prompt_of(backend)] * batch
    ids = torch.tensor([prompt.ids for prompt in prompts])
    torch.manual_seed(5)
    plain = backend.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_NEW_TOKENS, do_sample=True, pad_token_id=0
    )
    torch.manual_seed(5)
    released, _ = run(backend, prompts, watcher_for(backend), seed=None, do_sample=True)
    for row, tokens in enumerate(released):
        assert tokens == tuple(plain[row, ids.shape[1] :].tolist()[: len(tokens)])


def test_a_seeded_session_neither_reads_nor_moves_the_global_random_state():
    backend = backend_of("Llama")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, _ = run(backend, [prompt_of(backend)], watcher_for(backend), seed=7, do_sample=True)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    two, _ = run(backend, [prompt_of(backend)], watcher_for(backend), seed=7, do_sample=True)
    assert one == two


def test_an_end_of_turn_token_is_checked_at_the_depth_of_the_content_before_it():
    backend = backend_of("Llama")
    prompt = prompt_of(backend)
    (whole,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    end = whole[9]
    first = whole.index(end)
    (released,), (outcome,) = run(backend, [prompt], watcher_for(backend), do_sample=False, eos_token_id=end)
    assert released == whole[: first + 1]
    assert outcome.finish_reason == "stop"
    assert outcome.checks[-1].depth == prompt.prefill + first
    assert outcome.windows[-1].checked_at == prompt.prefill + first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "num_beams=4 cannot be guarded"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 cannot be guarded"),
        ({"use_cache": False}, "use_cache=False cannot be guarded"),
        ({"guidance_scale": 2.0}, "guidance_scale=2.0 cannot be guarded"),
        ({"max_length": 10}, "max_length is set by the guard"),
        ({"temprature": 1.0}, "temprature is not an option"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate=True cannot be guarded"),
    ],
)
def test_an_option_that_cannot_be_guarded_is_refused_by_name(options, message):
    backend = backend_of("Llama")
    with pytest.raises(ConfigError, match=message):
        backend.open([prompt_of(backend)], max_new_tokens=5, **options)


def test_a_generation_config_that_cannot_be_guarded_is_refused_as_well():
    backend = backend_of("Llama")
    backend.model.generation_config.num_beams = 3
    with pytest.raises(ConfigError, match="num_beams=3 cannot be guarded"):
        backend.open([prompt_of(backend)], max_new_tokens=5)


def test_options_that_look_back_are_refused_where_the_model_is_not_fed_the_past():
    backend = backend_of("Mamba-2")
    with pytest.raises(UnsupportedModel, match=r"repetition_penalty=1.2 looks at earlier tokens"):
        backend.open([prompt_of(backend)], max_new_tokens=5, repetition_penalty=1.2)


def test_a_prefill_longer_than_the_context_is_refused_with_the_numbers():
    backend = backend_of("Llama")
    prompt = prompt_of(backend, prefill="w1 " * 600)
    with pytest.raises(PromptError, match="the model's context of 512"):
        backend.open([prompt], max_new_tokens=5)
    with pytest.raises(PromptError, match="no prompt to answer"):
        backend.open([], max_new_tokens=5)


def test_an_answer_ends_for_length_where_the_context_is_full():
    backend = backend_of("Llama")
    prompt = prompt_of(backend, prefill="w1 " * 470)
    session = backend.open([prompt], max_new_tokens=100, do_sample=False)
    room = 512 - len(prompt.ids) - len(backend.header.ids)
    (decoded,) = session.decode(100)
    assert (len(decoded.token_ids), decoded.finish_reason) == (room, "length")
