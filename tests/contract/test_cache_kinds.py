"""Every kind of cache that a session can decode on: forks read true states and do not disturb the answer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import cache_utils
from transformers.cache_utils import DynamicCache, DynamicLayer

from anydepth.backends.protocol import CheckPoint
from anydepth.backends.transformers.fork import can_rewind, fork, fork_kinds, select_rows
from anydepth.backends.transformers.growing import GrowingLayer
from anydepth.errors import ConfigError, UnsupportedCache
from tests.contract.contract import (
    GREEDY,
    MAX_NEW_TOKENS,
    SAMPLED,
    TOLERANCE,
    backend_of,
    largest_difference,
    prompt_of,
    run,
    watcher_for,
)

STATIC = ["Llama", "Mistral (sliding window)", "Gemma-3", "gpt-oss", "Falcon-H1 (hybrid)", "DeepSeek-V3 (MLA)"]


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", STATIC)
def test_static_cache(family, options):
    backend = backend_of(family)
    prompt = prompt_of(backend)
    (plain,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, seed=3, **options)
    watcher = watcher_for(backend)
    (released,), _ = run(backend, [prompt], watcher, cache_implementation="static", **options)
    assert released == plain
    assert largest_difference(backend, prompt, released, watcher) < TOLERANCE


@pytest.fixture
def quanto_in_python(monkeypatch):
    """Put Python in the place of Quanto's C++ unpacking, which a fresh environment would compile for a minute."""
    cpp = pytest.importorskip("optimum.quanto.library.extensions.cpp")

    def unpack(packed, bits):
        return torch.cat([(packed >> bits * n) & (2**bits - 1) for n in range(8 // bits)])

    monkeypatch.setattr(cpp.ext, "_lib", SimpleNamespace(unpack=unpack))


@pytest.mark.usefixtures("quanto_in_python")
@pytest.mark.parametrize(
    "settings", [{"backend": "quanto", "nbits": 4, "residual_length": 16, "q_group_size": 8}, {"backend": "fp8"}]
)
def test_quantised_cache_is_not_disturbed_by_checks(settings):
    if settings["backend"] == "fp8" and not hasattr(cache_utils, "Fp8QuantizedLayer"):
        pytest.skip("this Transformers has no fp8 cache")
    backend = backend_of("Llama")
    prompt = prompt_of(backend)
    options = {"cache_implementation": "quantized", "cache_config": settings, **GREEDY}
    (plain,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, **options)
    watcher = watcher_for(backend)
    (released,), _ = run(backend, [prompt], watcher, **options)
    assert released == plain
    # A lossy cache reads lossy states: they are near the exact ones, not equal to them.
    assert largest_difference(backend, prompt, released, watcher) < 1.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "nonsense"}, r"cache_config=\{'backend': 'nonsense'\} is no quantised cache"),
        ({"bits": 4}, r"cache_config=\{'bits': 4\} is no quantised cache of transformers: .*bits"),
        ({"nbits": 5}, r"cache_config=\{'nbits': 5\} is no quantised cache of transformers: .*nbits"),
    ],
)
def test_settings_of_a_quantised_cache_that_cannot_be_are_refused_with_what_the_library_says(settings, message):
    backend = backend_of("Llama")
    options = {"cache_implementation": "quantized", "cache_config": settings}
    with pytest.raises(ConfigError, match=message):
        backend.open([prompt_of(backend)], max_new_tokens=5, **options)


def test_static_batch_with_rows_that_end_early():
    backend = backend_of("Llama")
    prompts = [prompt_of(backend, words=3, prefill=None), prompt_of(backend, words=9)]
    watcher = watcher_for(backend)
    released, _ = run(backend, prompts, watcher, cache_implementation="static", **GREEDY)
    for row, prompt in enumerate(prompts):
        own = watcher_for(backend)
        own.seen = [(point, state) for point, state in watcher.seen if point.row == row]
        assert largest_difference(backend, prompt, released[row], own) < TOLERANCE


@pytest.mark.parametrize("kind", ["offloaded", "paged", "nonsense"])
def test_a_cache_that_cannot_be_forked_is_refused_by_name(kind):
    backend = backend_of("Llama")
    with pytest.raises(ConfigError, match=f"cache_implementation is '{kind}'"):
        backend.open([prompt_of(backend)], max_new_tokens=5, cache_implementation=kind)


def test_an_unknown_layer_kind_is_refused_by_name():
    class InPlaceLayer(DynamicLayer):
        """A subclass that might write in place."""

    cache = DynamicCache()
    cache.layers = [DynamicLayer(), InPlaceLayer()]
    with pytest.raises(UnsupportedCache, match="layer 1 of the cache is a InPlaceLayer"):
        fork(cache)


def test_an_offloaded_or_foreign_cache_is_refused():
    offloaded = DynamicCache()
    offloaded.offloading = True
    with pytest.raises(UnsupportedCache, match="offloaded"):
        fork(offloaded)
    with pytest.raises(UnsupportedCache, match="not a list of cache layers"):
        fork(object())  # type: ignore[arg-type]


def test_a_dynamic_fork_shares_its_tensors_and_leaves_the_parent_alone():
    cache = DynamicCache()
    states = torch.ones(1, 2, 3, 4)
    cache.update(states, states, 0)
    twin = fork(cache)
    assert twin.layers[0].keys.data_ptr() == cache.layers[0].keys.data_ptr()
    twin.update(states, states, 0)
    assert (twin.get_seq_length(), cache.get_seq_length()) == (6, 3)


def test_a_cropped_fork_does_not_write_into_its_parent():
    layer = GrowingLayer()
    first = torch.arange(10.0)[None, None, :, None].expand(1, 2, 10, 4)
    layer.update(first, first)
    twin = layer.fork()
    assert twin.keys.data_ptr() == layer.keys.data_ptr()
    twin.crop(-6)
    twin.update(first[:, :, :3] + 100, first[:, :, :3] + 100)
    assert twin.keys[0, 0, :, 0].tolist() == [0, 1, 2, 3, 100, 101, 102]
    assert layer.keys[0, 0, :, 0].tolist() == list(range(10))
    behind = layer.fork()
    behind.update(first[:, :, :2] + 50, first[:, :, :2] + 50)
    assert behind.keys.data_ptr() == layer.keys.data_ptr(), "a fork at the end writes behind it and copies nothing"
    layer.update(first[:, :, :1] + 7, first[:, :, :1] + 7)
    assert layer.keys[0, 0, :, 0].tolist() == [*range(10), 7]


def test_a_fork_of_a_cropped_fork_does_not_write_into_the_first_parent():
    layer = GrowingLayer()
    first = torch.arange(10.0)[None, None, :, None].expand(1, 2, 10, 4)
    layer.update(first, first)
    twin = layer.fork()
    twin.crop(-6)
    again = twin.fork()
    again.update(first[:, :, :3] + 100, first[:, :, :3] + 100)
    assert again.keys[0, 0, :, 0].tolist() == [0, 1, 2, 3, 100, 101, 102]
    assert layer.keys[0, 0, :, 0].tolist() == list(range(10))


def test_rows_are_selected_and_kinds_are_counted():
    cache = DynamicCache()
    states = torch.arange(3.0)[:, None, None, None].expand(3, 2, 5, 4)
    cache.update(states, states, 0)
    assert select_rows(cache, [2, 0]).layers[0].keys[:, 0, 0, 0].tolist() == [2, 0]
    assert cache.layers[0].keys.shape[0] == 3
    assert fork_kinds(cache) == [("DynamicLayer", "shared", 1)]


def test_a_sliding_cache_can_be_rewound_only_inside_its_window():
    backend = backend_of("Mistral (sliding window)")
    session = backend.open([prompt_of(backend, words=2, prefill=None)], max_new_tokens=40, **GREEDY)
    session.decode(2)
    assert can_rewind(session.cache)
    session.decode(30)
    assert not can_rewind(session.cache)


def test_look_ahead_at_the_start_does_not_need_a_cache_that_rewinds():
    short, long = backend_of("Mistral (sliding window)"), backend_of("Mistral (sliding window)")
    prompts = prompt_of(short, words=2, prefill=None), prompt_of(long, words=2, prefill=None)
    sessions = [b.open([p], max_new_tokens=40, **GREEDY) for b, p in zip((short, long), prompts, strict=True)]
    texts = []
    for session, n in zip(sessions, (1, 35), strict=True):
        session.decode(n)
        point = CheckPoint(0, 0)
        texts.append((session.look_ahead([point], 6, lambda text: False), session.next_token_logprobs([point])))
    assert texts[0][0] == texts[1][0]
    np.testing.assert_allclose(texts[0][1], texts[1][1], atol=1e-4)
