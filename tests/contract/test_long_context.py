"""Over a long context the check takes another attention path on a CPU; it must read the same states."""

import os

import pytest

from anydepth.backends.transformers import read as reading
from tests.contract.contract import GREEDY, TOLERANCE, backend_of, largest_difference, prompt_of, run, watcher_for


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma-2", "DeepSeek-V3 (MLA)", "Falcon-H1 (hybrid)", "gpt-oss"])
@pytest.mark.parametrize("rows", [1, 2])
def test_shared_heads_give_true_states(family, rows, monkeypatch):
    monkeypatch.setattr(reading, "LONG_CONTEXT", 1)
    backend = backend_of(family)
    prompts = [prompt_of(backend), prompt_of(backend, words=4, prefill=None)][:rows]
    watcher = watcher_for(backend)
    released, _ = run(backend, prompts, watcher, **GREEDY)
    for number, prompt in enumerate(prompts):
        (plain,) = backend.unguarded([prompt], max_new_tokens=60, **GREEDY)
        assert released[number] == plain
        own = watcher_for(backend)
        own.seen = [(point, state) for point, state in watcher.seen if point.row == number]
        assert largest_difference(backend, prompt, released[number], own) < TOLERANCE
    assert "TRANSFORMERS_SDPA_FORCE_GQA" not in os.environ
