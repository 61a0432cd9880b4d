"""Over a long context a check takes another attention path on a CPU (`dtype="fast"`); it reads the same states."""

import os

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from anydepth.backends.transformers import TransformersBackend
from anydepth.backends.transformers.cpu import shared_heads
from tests import tiny
from tests.contract.contract import (
    GREEDY,
    MAX_NEW_TOKENS,
    TOLERANCE,
    backend_of,
    largest_difference,
    prompt_of,
    run,
    watcher_for,
)

SHARING = ("Llama", "Qwen3")
"""Families whose tiny model has key heads that query heads share, on the library's own attention."""


@pytest.fixture
def shared(monkeypatch):
    """How many times attention was computed with shared heads, in a list; the library's own is put back afterwards."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(args[0].shape)
        return torch.nn.functional.scaled_dot_product_attention(*args, **kwargs)

    monkeypatch.setattr(shared_heads, "LONG_CONTEXT", 1)
    monkeypatch.setattr(shared_heads, "scaled_dot_product_attention", counted)
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", sdpa_attention_forward)
    shared_heads.share_heads()
    return calls


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma-2", "DeepSeek-V3 (MLA)", "Falcon-H1 (hybrid)", "gpt-oss"])
@pytest.mark.parametrize("rows", [1, 2])
def test_shared_heads_give_true_states(family, rows, shared):
    environment = dict(os.environ)
    backend = backend_of(family)
    prompts = [prompt_of(backend), prompt_of(backend, words=4, prefill=None)][:rows]
    watcher = watcher_for(backend)
    released, _ = run(backend, prompts, watcher, **GREEDY)
    assert shared or family not in SHARING
    for number, prompt in enumerate(prompts):
        (plain,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, **GREEDY)
        assert released[number] == plain
        own = watcher_for(backend)
        own.seen = [(point, state) for point, state in watcher.seen if point.row == number]
        assert largest_difference(backend, prompt, released[number], own) < TOLERANCE
    assert dict(os.environ) == environment


def test_only_readings_share_heads(shared):
    backend = backend_of("Llama")
    ids = torch.tensor([backend.pad_id, *prompt_of(backend).ids])[None]
    mask = (torch.arange(ids.shape[1]) > 0).long()[None]
    with torch.no_grad():
        backend.model(input_ids=ids, attention_mask=mask)  # as a batch is decoded: with a mask
    assert not shared


def test_a_model_that_was_handed_over_comes_back_as_it_was(shared):
    model = tiny.tiny_model("Llama").eval()
    before = _state_of(model)
    backend = TransformersBackend(model, tiny.tiny_tokenizer())
    run(backend, [prompt_of(backend)], watcher_for(backend), **GREEDY)
    assert shared and _state_of(model) == before


def _state_of(model):
    """Each module's class and attributes, hooks among them, and how the model computes attention."""
    modules = [(name, type(each), sorted(vars(each)), len(each._forward_hooks)) for name, each in model.named_modules()]
    return modules, model.config._attn_implementation, model.generation_config.to_dict()
