"""Every family: the guarded stream is the unguarded one, and a fork reads what a full recompute reads."""

import inspect
import warnings

import numpy as np
import pytest
import torch
import transformers
from transformers.cache_utils import Cache

from anydepth.backends.protocol import CONTENT, CheckPoint, FinishedAnswer, Read, Site
from anydepth.backends.transformers.blocks import default_site, find_blocks
from anydepth.backends.transformers.fork import can_rewind
from anydepth.backends.transformers.inputs import ForwardInputs
from anydepth.backends.transformers.naive import naive_scan, naive_state
from anydepth.backends.transformers.read import read, to_numpy
from anydepth.errors import UnsupportedModel
from anydepth.templates.template import Prompt
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
    recomputed_read,
    run,
    watcher_for,
)

REFUSED = {"RWKV": "keeps its state outside of a Transformers Cache"}
KEPT = [family for family in tiny.FAMILIES if family not in REFUSED]
PACKED = [f for f in KEPT if not any(word in f for word in ("Mamba", "hybrid", "linear"))]
# One of each kind: plain, sliding window, recurrent, linear attention.
ALWAYS = ("Llama", "Gemma-3", "Jamba (hybrid)", "Qwen3-Next (linear attention)")


def these(families):
    """The families, those that `make test` leaves to `make test-all` marked."""
    return [family if family in ALWAYS else pytest.param(family, marks=pytest.mark.matrix) for family in families]


@pytest.fixture(params=these(KEPT))
def backend(request):
    return backend_of(request.param)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_page_of_architectures_says_what_is_so(family):
    try:
        expected = row(family, backend_of(family))
    except UnsupportedModel as error:
        expected = refused_row(family, error)
    assert expected in PAGE.read_text(encoding="utf-8").splitlines(), "run: python -m tests.contract.architectures"


@pytest.mark.parametrize("backend", KEPT, indirect=True)  # both contracts, always for every family
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
    assert all(len(outcome.checks) >= 5 for outcome in outcomes)
    if rows == 1:
        (expected,) = backend.unguarded(prompts, max_new_tokens=MAX_NEW_TOKENS, seed=3, **SAMPLED)
    else:  # beside the same batch whose checks only read
        (expected, *_), _ = run(backend, prompts, watcher_for(backend), **SAMPLED)
    assert looked == expected


def test_a_check_at_a_depth_that_is_past_is_refused(backend):
    session = backend.open([prompt_of(backend)], max_new_tokens=20, **GREEDY)
    session.decode(9)
    site = watcher_for(backend).site
    with pytest.raises(ValueError, match="is at depth 12; it cannot be read at depth 5"):
        session.hidden_states([CheckPoint(0, 5)], [Read(site, backend.header.read_index)])


@pytest.mark.parametrize("family", these(PACKED))
def test_packed_pass_reads_what_a_recompute_reads(family):
    backend = backend_of(family)
    prompt = prompt_of(backend, prefill=" ".join(f"w{n}" for n in range(60, 120)))
    question, answer = Prompt(prompt.ids[: prompt.start]), prompt.ids[prompt.start :]
    watcher, depths = watcher_for(backend), [0, 1, 7, 25, 40, len(answer)]
    whole = range(len(backend.header.ids))
    finished = FinishedAnswer(question, tuple(answer), tuple(depths))
    states = backend.read_batch([finished], [watcher.site], tokens=whole)[0][watcher.site]
    assert states.shape == (len(depths), len(backend.header.ids), backend.identity.hidden_size)
    watcher.seen = [(CheckPoint(0, d), states[k, watcher.read_index]) for k, d in enumerate(depths)]
    assert largest_difference(backend, question, answer, watcher) < TOLERANCE


@pytest.mark.parametrize("family", these(PACKED))
def test_a_batch_reads_what_each_answer_alone_reads(family):
    backend = backend_of(family)
    site, tokens = watcher_for(backend).site, (CONTENT, *range(len(backend.header.ids)))
    finished = []
    for words, depths in ((60, (0, 1, 25, 50)), (9, (0, 9)), (30, (3, 30, 12))):
        prompt = prompt_of(backend, prefill=" ".join(f"w{n}" for n in range(words)))
        answer = prompt.ids[prompt.start :]
        finished.append(FinishedAnswer(prompt, answer, tuple(min(depth, len(answer)) for depth in depths)))
    together = backend.read_batch(finished, [site], tokens=tokens)
    for answer, states in zip(finished, together, strict=True):
        (alone,) = backend.read_batch([answer], [site], tokens=tokens)
        assert states[site].shape == (len(answer.depths), len(tokens), backend.identity.hidden_size)
        assert np.abs(states[site] - alone[site]).max() < TOLERANCE


@pytest.mark.parametrize("family", these(PACKED))
def test_the_content_token_is_read_where_the_text_ends(family):
    backend = backend_of(family)
    prompt = prompt_of(backend, prefill=" ".join(f"w{n}" for n in range(40)))
    site, answer = watcher_for(backend).site, prompt.ids[prompt.start :]
    (states,) = backend.read_batch([FinishedAnswer(prompt, answer, (10, 25))], [site], tokens=[CONTENT])
    for depth, state in zip((10, 25), states[site][:, 0], strict=True):
        ids = torch.tensor([[*prompt.ids[: prompt.start], *answer[:depth]]])
        last = read(backend.model, (site,), backend.inputs.build(ids, None, torch.ones_like(ids)))[site][0, -1]
        assert np.abs(state - to_numpy(last)).max() < TOLERANCE


@pytest.mark.parametrize("rows", [1, 3])
def test_several_reads_come_out_of_one_check(backend, rows):
    middle, last = default_site(backend.model), len(backend.header.ids) - 1
    higher = Site(len(find_blocks(backend.model)) - 1, "output")
    reads = [Read(higher, last), Read(middle, CONTENT), Read(higher, 0)]
    if not can_rewind(backend.new_cache(8, {})):
        reads = [read for read in reads if read.token != CONTENT]
    prompts = [prompt_of(backend, prefill=words) for words in ("w1 w2", None, "w3 w4 w5")[:rows]]
    session = backend.open(prompts, max_new_tokens=30, **GREEDY)
    answers, live = [list(prompt.ids[prompt.start :]) for prompt in prompts], list(range(rows))
    for step in range(6):
        points = [CheckPoint(index, len(answers[index])) for index in live]
        if step == 0:
            points += [CheckPoint(row, 0) for row in range(rows) if answers[row]]
        for point, states in zip(points, session.hidden_states(points, reads) if points else [], strict=True):
            for wanted, state in zip(reads, states, strict=True):
                want = recomputed_read(backend, prompts[point.row], answers[point.row], point.depth, wanted)
                assert np.abs(state - want).max() < TOLERANCE, (point, wanted)
        decoded = session.decode(5)
        live = [index for index in live if decoded[index].token_ids]
        for index in live:
            answers[index] += decoded[index].token_ids[: len(decoded[index].token_ids) - decoded[index].end_tokens]
    session.close()


@pytest.mark.parametrize("family", [family for family in KEPT if family not in PACKED])
def test_packed_pass_is_refused_with_the_reason_where_a_mask_cannot_rewind(family):
    backend = backend_of(family)
    prompt = prompt_of(backend)
    with pytest.raises(UnsupportedModel, match="no attention mask can rewind"):
        backend.read_batch([FinishedAnswer(prompt, (5, 6), (1,))], [watcher_for(backend).site], tokens=[0])


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
        again = session.hidden_states([CheckPoint(0, depth)], [Read(watcher.site, watcher.read_index)])[0, 0]
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


class _Forgetful(transformers.LlamaForCausalLM):
    """A model that runs the whole text for every token: its `forward` is never handed a cache."""

    def prepare_inputs_for_generation(self, *args, **kwargs):
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        return {name: value for name, value in inputs.items() if not isinstance(value, Cache)}


def test_a_model_whose_generate_keeps_the_cache_from_forward_is_refused():
    model = tiny.tiny_model("Llama")
    model.__class__ = _Forgetful
    with pytest.raises(UnsupportedModel, match="_Forgetful does not hand the tokens and the cache"):
        ForwardInputs(model)


def test_a_cache_argument_that_generate_does_not_fill_is_not_taken_for_one():
    config = transformers.XLMConfig(vocab_size=256, emb_dim=32, n_layers=2, n_heads=4)
    with pytest.raises(UnsupportedModel, match="XLMWithLMHeadModel"):
        ForwardInputs(transformers.XLMWithLMHeadModel(config))


def test_a_model_that_cannot_generate_is_refused_with_what_the_library_says():
    model = tiny.tiny_model("Llama")
    model.generation_config = None
    with pytest.raises(UnsupportedModel, match="fails before its first forward pass"):
        ForwardInputs(model)


@pytest.mark.parametrize("family", ["Llama", "Gemma-3", "Mamba-2", "Jamba (hybrid)"])
def test_nothing_is_run_to_find_out_how_a_model_wants_its_tokens(family):
    model = tiny.tiny_model(family)
    ran = []
    for module in model.children():
        module.register_forward_pre_hook(lambda *_: ran.append(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs = ForwardInputs(model)
        assert inputs.cache_name in inspect.signature(model.forward).parameters
        assert inputs.slices_history == (family != "Mamba-2")
    assert not ran and not model._forward_pre_hooks


@pytest.mark.parametrize("family", ["Llama", "Gemma-3", "Mamba-2", "Jamba (hybrid)", "Mixtral"])
def test_checks_and_scans_use_no_name_that_the_library_gives_up(family, recwarn):
    backend = backend_of(family)
    prompt = prompt_of(backend)
    run(backend, [prompt], LooksAhead(), **GREEDY)
    if backend.packs:
        backend.read_batch([FinishedAnswer(prompt, (5, 6), (1,))], [watcher_for(backend).site], tokens=[0])
    given_up = [str(each.message) for each in recwarn if "deprecated" in str(each.message)]
    assert not given_up
