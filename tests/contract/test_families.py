"""Every family: the guarded stream is the unguarded one, and a fork reads what a full recompute reads."""

import numpy as np
import pytest
import torch

from anydepth.backends.base import CheckPoint, Site
from anydepth.backends.transformers.naive import naive_scan, naive_state
from anydepth.errors import UnsupportedModel
from anydepth.template import Prompt
from tests import tiny
from tests.contract.architectures import PAGE, refused_row, row
from tests.contract.contract import (
    GREEDY,
    MAX_NEW_TOKENS,
    SAMPLED,
    TOLERANCE,
    LooksAhead,
    backend_of,
    largest_difference,
    prompt_of,
    recomputed,
    run,
    watcher_for,
)

REFUSED = {"RWKV": "keeps its state outside of a Transformers Cache"}
KEPT = [family for family in tiny.FAMILIES if family not in REFUSED]
PACKED = [f for f in KEPT if not any(word in f for word in ("Mamba", "hybrid", "linear"))]


@pytest.fixture(params=KEPT)
def backend(request):
    return backend_of(request.param)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_page_of_architectures_says_what_is_so(family):
    try:
        expected = row(family, backend_of(family))
    except UnsupportedModel as error:
        expected = refused_row(family, error)
    assert expected in PAGE.read_text(encoding="utf-8").splitlines(), "run: python -m tests.contract.architectures"


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_guarded_stream_is_the_unguarded_one_and_forks_read_true_states(backend, options):
    prompt = prompt_of(backend)
    (plain,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, seed=3, **options)
    watcher = watcher_for(backend)
    (released,), (outcome,) = run(backend, [prompt], watcher, **options)
    assert released == plain
    assert outcome.generated == len(plain)
    assert len(watcher.seen) >= 5
    assert largest_difference(backend, prompt, released, watcher) < TOLERANCE


def test_rows_of_different_lengths_do_not_disturb_each_other(backend):
    prompts = [prompt_of(backend, words=3, prefill=None), prompt_of(backend, words=12), prompt_of(backend, words=5)]
    released, _ = run(backend, prompts, watcher_for(backend), **GREEDY)
    for prompt, tokens in zip(prompts, released, strict=True):
        (alone,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, **GREEDY)
        assert tokens == alone


def test_states_of_a_padded_batch_are_those_of_each_row_alone(backend):
    prompts = [prompt_of(backend, words=3, prefill=None), prompt_of(backend, words=12)]
    watcher = watcher_for(backend)
    released, _ = run(backend, prompts, watcher, **GREEDY)
    for number, prompt in enumerate(prompts):
        own = watcher_for(backend)
        own.seen = [(point, state) for point, state in watcher.seen if point.row == number]
        assert largest_difference(backend, prompt, released[number], own) < TOLERANCE


@pytest.mark.parametrize("depth", [0, 3, 10])
def test_look_ahead_and_next_token_follow_the_header(backend, depth):
    prompt = prompt_of(backend)
    session = backend.open([prompt], max_new_tokens=20, **GREEDY)
    if depth > prompt.prefill:
        session.decode(depth - prompt.prefill)
    answer = [*prompt.ids[prompt.start :], *session._ids[0, len(prompt.ids) :].tolist()][:depth]
    header = backend.header.ids if depth else ()
    ids = torch.tensor([[*prompt.ids[: prompt.start], *answer, *header]])
    point = CheckPoint(0, depth)
    with torch.no_grad():
        expected = backend.model(ids, use_cache=False).logits[0, -1].log_softmax(-1).numpy()
    np.testing.assert_allclose(session.next_token_logprobs([point])[0], expected, atol=1e-3)
    plain = backend.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    text = backend.decode_text(plain[0, ids.shape[1] :].tolist())
    assert session.look_ahead([point], 8, lambda text: False) == [text]
    assert len(session.look_ahead([point], 8, lambda text: True)[0].split()) <= 1


@pytest.mark.parametrize("prefill", [None, "w11 w12 w13 w14 w15 w16"])
@pytest.mark.parametrize("rows", [1, 2])
def test_looking_ahead_does_not_disturb_the_answer(backend, prefill, rows):
    prompts = [prompt_of(backend, prefill=prefill), prompt_of(backend, words=4, prefill=prefill)][:rows]
    (looked, *_), outcomes = run(backend, prompts, LooksAhead(), **SAMPLED)
    (watched, *_), _ = run(backend, prompts, watcher_for(backend), **SAMPLED)
    assert looked == watched
    assert all(len(outcome.checks) >= 5 for outcome in outcomes)
    if rows == 1:
        (plain,) = backend.unguarded(prompts, max_new_tokens=MAX_NEW_TOKENS, seed=3, **SAMPLED)
        assert looked == plain


def test_a_check_at_a_depth_that_is_past_is_refused(backend):
    session = backend.open([prompt_of(backend)], max_new_tokens=20, **GREEDY)
    session.decode(9)
    site = watcher_for(backend).site
    with pytest.raises(ValueError, match="is at depth 12; it cannot be read at depth 5"):
        session.hidden_states([CheckPoint(0, 5)], site, backend.header.read_index)


@pytest.mark.parametrize("family", PACKED)
def test_packed_pass_reads_what_a_recompute_reads(family):
    backend = backend_of(family)
    prompt = prompt_of(backend, prefill=" ".join(f"w{n}" for n in range(60, 120)))
    question, answer = Prompt(prompt.ids[: prompt.start]), prompt.ids[prompt.start :]
    watcher, depths = watcher_for(backend), [0, 1, 7, 25, 40, len(answer)]
    states = backend.read_depths(question, answer, depths, [watcher.site])[watcher.site]
    assert states.shape == (len(depths), len(backend.header.ids), backend.identity.hidden_size)
    watcher.seen = [(CheckPoint(0, d), states[k, watcher.read_index]) for k, d in enumerate(depths)]
    assert largest_difference(backend, question, answer, watcher) < TOLERANCE


@pytest.mark.parametrize("family", [family for family in KEPT if family not in PACKED])
def test_packed_pass_is_refused_with_the_reason_where_a_mask_cannot_rewind(family):
    backend = backend_of(family)
    prompt = prompt_of(backend)
    with pytest.raises(UnsupportedModel, match="no attention mask can rewind"):
        backend.read_depths(prompt, (5, 6), [1], [watcher_for(backend).site])


def test_replaying_an_answer_reads_what_generating_it_read(backend):
    prompt = prompt_of(backend, prefill=None)
    watcher = watcher_for(backend)
    (released,), _ = run(backend, [prompt], watcher, **GREEDY)
    session = backend.replay(prompt, released)
    depth = 0
    for point, state in watcher.seen[1:]:
        if point.depth > depth:
            session.decode(point.depth - depth)
            depth = point.depth
        if depth == len(released) - 1:
            continue  # ends with an end-of-turn token, which a replay counts as a token like any other
        (again,) = session.hidden_states([CheckPoint(0, depth)], watcher.site, watcher.read_index)
        np.testing.assert_allclose(again, state, atol=TOLERANCE)


@pytest.mark.parametrize("family", REFUSED)
def test_what_a_family_cannot_do_is_refused_by_name(family):
    with pytest.raises(UnsupportedModel, match=REFUSED[family]):
        backend_of(family)


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma-3"])
def test_the_baselines_of_the_bench_read_what_they_should(family):
    backend = backend_of(family)
    prompt, answer, depths = prompt_of(backend, prefill=None), tuple(range(20, 60)), [7, 25, 40]
    site, index = Site(1, "output"), backend.header.read_index  # the output of block 1 is the input of block 2
    expected = [recomputed(backend, prompt, answer, depth, site, index) for depth in depths]
    np.testing.assert_allclose(naive_scan(backend, prompt, answer, depths, Site(2)), expected, atol=TOLERANCE)
    session = backend.replay(prompt, answer)
    session.decode(25)
    np.testing.assert_allclose(naive_state(session, Site(2))[0].numpy(), expected[1], atol=TOLERANCE)
