"""A LoRA adapter: guarded as it is, and read through the base weights where that is asked for."""

from contextlib import closing

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from anydepth.backends.protocol import WHOLE, FinishedAnswer, Read, Site
from anydepth.backends.transformers import TransformersBackend
from anydepth.backends.transformers.read import read
from anydepth.errors import ConfigError
from tests import tiny
from tests.contract.contract import (
    GREEDY,
    MAX_NEW_TOKENS,
    TOLERANCE,
    backend_of,
    largest_difference,
    prompt_of,
    recomputed,
    run,
    watcher_for,
)


def adapted(family: str = "Llama", **options) -> TransformersBackend:
    model = get_peft_model(tiny.tiny_model(family), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.5)
    return TransformersBackend(model, tiny.tiny_tokenizer(), **options)


def test_a_model_with_an_adapter_is_guarded_as_it_is():
    backend = adapted()
    prompt = prompt_of(backend)
    (plain,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, **GREEDY)
    (bare,) = backend_of("Llama").unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, **GREEDY)
    assert plain != bare, "the adapter changes nothing, so this test would show nothing"
    watcher = watcher_for(backend)
    (released,), _ = run(backend, [prompt], watcher, **GREEDY)
    assert released == plain
    assert largest_difference(backend, prompt, released, watcher) < TOLERANCE


@pytest.mark.parametrize("rows", [1, 2])
def test_states_are_read_through_the_base_weights_while_the_adapter_answers(rows):
    backend, base = adapted(base_weights=True), backend_of("Llama")
    prompts = [prompt_of(backend), prompt_of(backend, words=4, prefill=None)][:rows]
    watcher = watcher_for(backend)
    released, _ = run(backend, prompts, watcher, **GREEDY)
    for row, prompt in enumerate(prompts):
        (plain,) = adapted().unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, **GREEDY)
        assert released[row] == plain
        own = watcher_for(backend)
        own.seen = [(point, state) for point, state in watcher.seen if point.row == row]
        assert largest_difference(base, prompt, released[row], own) < TOLERANCE


def test_another_site_and_a_failed_pass_through_the_base_weights():
    backend, base = adapted(base_weights=True), backend_of("Llama")
    prompt, index = prompt_of(backend, prefill=None), backend.header.read_index
    session, written = backend.open([prompt], max_new_tokens=30, **GREEDY), ()
    with closing(session):
        for number, block in enumerate((1, 3, 1, 0)):
            written += session.decode(5)[0].token_ids
            reads = [Read(Site(block, "output"), index), Read(Site(block, "output"), WHOLE)]
            if number == 2:
                failing = backend.model.model.layers[3].mlp.register_forward_hook(_fail)
                with failing, pytest.raises(RuntimeError, match="out of memory"):
                    session.hidden_states([session.current(0)], reads[:1])
            header, mean = session.hidden_states([session.current(0)], reads)[0]
            depth = len(written)
            assert np.abs(header - recomputed(base, prompt, written, depth, reads[0].site, index)).max() < TOLERANCE
            text = torch.tensor([prompt.ids + written])
            states = read(base.model, (reads[0].site,), {"input_ids": text, "use_cache": False})[reads[0].site]
            assert np.abs(mean - states[0, len(prompt.ids) :].mean(0).numpy()).max() < TOLERANCE


def _fail(*_):
    raise RuntimeError("out of memory")


def test_the_packed_pass_reads_through_the_base_weights_too():
    backend, base = adapted(base_weights=True), backend_of("Llama")
    prompt, answer = prompt_of(backend, prefill=None), tuple(range(20, 60))
    site, index = watcher_for(backend).site, backend.header.read_index
    answer_at = FinishedAnswer(prompt, tuple(answer), (0, 9, 40))
    states = backend.read_batch([answer_at], [site], tokens=[index])[0][site][:, 0]
    for state, depth in zip(states, [0, 9, 40], strict=True):
        np.testing.assert_allclose(state, recomputed(base, prompt, answer, depth, site, index), atol=TOLERANCE)


def test_an_adapter_does_not_change_which_model_it_is():
    assert adapted().identity.fingerprint == backend_of("Llama").identity.fingerprint
    assert adapted().adapter and not backend_of("Llama").adapter
    other = tiny.tiny_model("Llama")
    with torch.no_grad():
        other.model.layers[0].input_layernorm.weight.mul_(1.5)
    changed = TransformersBackend(other, tiny.tiny_tokenizer())
    assert changed.identity.fingerprint != backend_of("Llama").identity.fingerprint


def test_the_fingerprint_survives_bf16_loading():
    half = TransformersBackend(tiny.tiny_model("Qwen2").to(torch.bfloat16), tiny.tiny_tokenizer())
    assert half.identity.fingerprint == backend_of("Qwen2").identity.fingerprint


def test_base_weights_without_an_adapter_is_refused():
    with pytest.raises(ConfigError, match="no PEFT adapter"):
        TransformersBackend(tiny.tiny_model("Llama"), tiny.tiny_tokenizer(), base_weights=True)
