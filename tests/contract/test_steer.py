"""Editing hidden states: only where it was said, in whatever pieces tokens are fed, and not a moment longer."""

import threading

import numpy as np
import pytest
import torch

from anydepth.backends.protocol import CheckPoint, Read, Site
from anydepth.backends.transformers import steer
from anydepth.backends.transformers.blocks import default_site
from anydepth.backends.transformers.read import captured
from anydepth.errors import UnsupportedModel
from tests.contract.contract import backend_of, prompt_of

FAMILIES = ["Llama", "Gemma-3", "Qwen2", "gpt-oss", "Mamba-2", "Falcon-H1 (hybrid)", "Jamba (hybrid)"]
IDS = torch.arange(10, 22)[None]


def direction(backend, seed: int = 1) -> np.ndarray:
    return steer.unit(np.random.default_rng(seed).standard_normal(backend.identity.hidden_size))


def states_at(backend, site: Site, ids: torch.Tensor = IDS) -> torch.Tensor:
    with captured(backend.model, (site,), stop=False) as seen, torch.no_grad():
        backend.model(input_ids=ids)
    return seen[site][0][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_named_tokens_are_edited(family):
    backend = backend_of(family)
    site = default_site(backend.model)
    before, vector = states_at(backend, site), 3 * direction(backend)
    with steer.edited(backend.model, site, steer.add(vector), [4, 5, 9]):
        after = states_at(backend, site)
    moved = (after - before).numpy()
    np.testing.assert_allclose(moved[[4, 5, 9]], np.tile(vector, (3, 1)), atol=1e-4)
    assert not np.delete(moved, [4, 5, 9], 0).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_itself_again_afterwards_whatever_happened(family):
    backend = backend_of(family)
    site = default_site(backend.model)
    before = states_at(backend, site)
    with (
        pytest.raises(RuntimeError, match="stop"),
        steer.edited(backend.model, site, steer.add(direction(backend)), [3]),
    ):
        raise RuntimeError("stop")
    assert torch.equal(states_at(backend, site), before)
    with steer.edited(backend.model, site, steer.add(direction(backend)), [3]):
        assert not torch.equal(states_at(backend, site), before)
    assert torch.equal(states_at(backend, site), before)


@pytest.mark.parametrize("family", ["Llama", "Gemma-3", "Falcon-H1 (hybrid)"])
@pytest.mark.parametrize("sizes", [(12,), (5, 4, 3), (1,) * 12])
def test_positions_count_fed_tokens_however_they_are_fed(family, sizes):
    backend = backend_of(family)
    site = default_site(backend.model)
    replaced = np.stack([direction(backend, seed) * 5 for seed in range(2)])[None]
    assert backend.inputs.takes_chunks is not None  # tried with tokens of its own, which are not to be counted

    def logits(pieces):
        cache, fed, found = backend.new_cache(32, {}), 0, None
        with steer.edited(backend.model, site, steer.put(replaced), [6, 7]):
            for piece in pieces:
                mask = torch.ones(1, fed + piece, dtype=torch.long)
                found = backend.feed(IDS[:, fed : fed + piece], cache, mask)
                fed += piece
        return found.numpy()

    np.testing.assert_allclose(logits(sizes), logits((12,)), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_header_on_a_fork_is_edited_as_in_the_whole_text(family):
    backend = backend_of(family)
    site, prompt = default_site(backend.model), prompt_of(backend)
    header, edit = backend.header.ids, steer.add(20 * direction(backend))
    whole = torch.tensor([[*prompt.ids, *header]])
    with torch.no_grad():
        plain = backend.model(input_ids=whole).logits[0, -1].log_softmax(-1).numpy()
        with steer.edited(backend.model, site, edit, range(len(prompt.ids), whole.shape[1])):
            wanted = backend.model(input_ids=whole).logits[0, -1].log_softmax(-1).numpy()
    assert np.abs(wanted - plain).max() > 0.01, "the edit changes nothing, so this test would show nothing"
    session = backend.open([prompt], max_new_tokens=4, do_sample=False)
    points = [session.current(0)]
    np.testing.assert_allclose(session.next_token_logprobs(points)[0], plain, atol=1e-3)
    with steer.edited(backend.model, site, edit, range(len(header))):
        found = session.next_token_logprobs(points)[0]
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    np.testing.assert_allclose(session.next_token_logprobs(points)[0], plain, atol=1e-3)
    session.close()


def test_what_a_look_ahead_writes_is_not_edited():
    backend = backend_of("Llama")
    seen = []

    def watch(states, places):
        seen.append((tuple(states.shape), tuple(places)))
        return states

    prompts = [prompt_of(backend), prompt_of(backend, words=3)]
    session = backend.open(prompts, max_new_tokens=4, do_sample=False)
    points = [session.current(row) for row in range(2)]
    plain = session.look_ahead(points, 8, lambda text: False)
    count = len(backend.header.ids)
    with steer.edited(backend.model, Site(2, "output"), watch, range(count)):
        assert session.look_ahead(points, 8, lambda text: False) == plain
    assert seen == [((2, count, backend.identity.hidden_size), tuple(range(count)))]
    session.close()


def test_rows_get_states_of_their_own_and_a_direction_is_projected_out():
    backend = backend_of("Qwen2")
    site, index = default_site(backend.model), backend.header.read_index
    session = backend.open([prompt_of(backend), prompt_of(backend, words=3)], max_new_tokens=1, do_sample=False)
    points, reads = [CheckPoint(0, 3), CheckPoint(1, 3)], [Read(site, index)]
    before = session.hidden_states(points, reads)[:, 0]
    others = np.random.default_rng(3).standard_normal((2, index + 1, before.shape[1])).astype(np.float32)
    with steer.edited(backend.model, site, steer.put(others), range(index + 1)):
        np.testing.assert_allclose(session.hidden_states(points, reads)[:, 0], others[:, index], atol=1e-6)
    line = direction(backend)
    with steer.edited(backend.model, site, steer.ablate(3 * line), range(index + 1)):
        after = session.hidden_states(points, reads)[:, 0]
    np.testing.assert_allclose(after @ line, 0, atol=1e-5)
    np.testing.assert_allclose(after, before - np.outer(before @ line, line), atol=1e-5)
    np.testing.assert_allclose(session.hidden_states(points, reads)[:, 0], before, atol=1e-6)
    session.close()


def test_another_threads_pass_is_left_alone():
    backend = backend_of("Llama")
    site = default_site(backend.model)
    before, found = states_at(backend, site), []
    with steer.edited(backend.model, site, steer.add(direction(backend)), range(12)):
        thread = threading.Thread(target=lambda: found.append(states_at(backend, site)))
        thread.start()
        thread.join()
        assert not torch.equal(states_at(backend, site), before)
    assert torch.equal(found[0], before)


@pytest.mark.parametrize("family", ["Llama", "Gemma-3", "Mamba-2"])
def test_the_streams_direction_moves_the_read_more_than_any_other(family):
    backend = backend_of(family)
    site = Site(2, "input_layernorm") if family != "Mamba-2" else Site(2, "output")
    into = steer.entry(site)
    stream = states_at(backend, into)[-1:].float().numpy()
    weight = direction(backend)
    along = steer.in_stream(backend.model, site, weight, stream)
    assert np.linalg.norm(along) == pytest.approx(1, abs=1e-5)

    def read_after(vector):
        with steer.edited(backend.model, into, steer.add(vector), [IDS.shape[1] - 1]):
            return float(states_at(backend, site)[-1].numpy() @ weight)

    step = 1e-2 * np.linalg.norm(stream)
    base = read_after(0 * along)
    gained = read_after(step * along) - base
    assert gained > 0
    for seed in range(20):
        other = direction(backend, 100 + seed)
        assert abs(read_after(step * other) - base) < gained
        across = steer.unit(other - (other @ along) * along)
        assert abs(read_after(step * across) - base) < 0.1 * gained


@pytest.mark.parametrize("site", [Site(0), Site(2, "mlp"), Site(2, "post_attention_layernorm")])
def test_a_site_that_does_not_begin_or_end_a_block_has_no_direction_in_the_stream(site):
    with pytest.raises(UnsupportedModel, match=str(site)):
        steer.entry(site)
    assert steer.entry(Site(2)) == Site(1, "output")
    assert steer.entry(Site(2, "output")) == Site(2, "output")
