"""Means over answer tokens, on every family: a session, a packed pass and a plain pass over the text give the same."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

from anydepth import Every, Guard, Threshold
from anydepth.backends.protocol import WHOLE, CheckPoint, FinishedAnswer, Read, Site
from anydepth.backends.transformers import TransformersBackend
from anydepth.backends.transformers.answer_states import AnswerSpan, AnswerStates
from anydepth.backends.transformers.blocks import default_site, find_blocks
from anydepth.backends.transformers.read import read
from anydepth.backends.transformers.session import TransformersSession
from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.errors import CheckError, UnsupportedModel
from anydepth.scan import inside_prefill, scan_answer
from anydepth.templates.template import Prompt
from anydepth.types import Checked, Score
from tests import tiny
from tests.contract import test_prove
from tests.contract.contract import GREEDY, MAX_NEW_TOKENS, SAMPLED, TOLERANCE, backend_of, prompt_of, recomputed_read
from tests.contract.test_adapters import adapted
from tests.contract.test_families import KEPT, PACKED, these
from tests.contract.test_inside_prefill import PREFILL

LENGTHS = (-2, -5, WHOLE)


def sites_of(backend: TransformersBackend) -> tuple[Site, Site]:
    """The default site, and the output of the last block."""
    return default_site(backend.model), Site(len(find_blocks(backend.model)) - 1, "output")


def mean_reads(backend: TransformersBackend) -> tuple[Read, ...]:
    """Means of each length at two sites."""
    return tuple(Read(site, token) for site in sites_of(backend) for token in LENGTHS)


def wanted(
    backend: TransformersBackend, question: Sequence[int], answer: Sequence[int], depth: int, reads: Sequence[Read]
) -> np.ndarray:
    """What `reads` at `depth` must give, from a plain pass over the text: float32 `[reads, hidden_size]`."""
    prompt, found = Prompt(tuple(question)), []
    ids = torch.tensor([[*question, *answer[:depth]]])
    for each in reads:
        if each.token >= -1:
            found.append(recomputed_read(backend, prompt, answer, depth, each))
            continue
        states = read(backend.model, (each.site,), {"input_ids": ids, "use_cache": False})[each.site][0]
        last = states[max(len(question), len(question) + depth + each.token) :].float()
        found.append((last.sum(0) / (max(depth, 1) if each.token == WHOLE else -each.token)).numpy())
    return np.stack(found)


def walk(
    session: TransformersSession,
    prompts: Sequence[Prompt],
    reads: Sequence[Read],
    windows: Sequence[int],
    check: Callable[[int], bool] = lambda step: True,
) -> tuple[list[list[int]], dict[tuple[int, int], np.ndarray]]:
    """Decode by `windows` and read all live rows at each step that is to be checked.

    Returns:
        The answers, prefill included and end of turn left out, and the states by row and depth.
    """
    answers, live = [list(prompt.ids[prompt.start :]) for prompt in prompts], list(range(len(prompts)))
    found: dict[tuple[int, int], np.ndarray] = {}
    for step, size in enumerate([*windows, 0]):
        points = [CheckPoint(row, 0) for row in range(len(prompts))] if step == 0 else []
        points += [CheckPoint(row, len(answers[row])) for row in live if answers[row]]
        if points and check(step):
            for point, states in zip(points, session.hidden_states(points, reads), strict=True):
                found[point.row, point.depth] = states
        if not size or not live:
            break
        decoded = session.decode(size)
        live = [row for row in live if decoded[row].token_ids]
        for row in live:
            answers[row] += decoded[row].token_ids[: len(decoded[row].token_ids) - decoded[row].end_tokens]
    return answers, found


def compare(
    backend: TransformersBackend,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[int]],
    found: dict[tuple[int, int], np.ndarray],
    reads: Sequence[Read],
) -> None:
    for (row, depth), states in found.items():
        prompt = prompts[row]
        expected = wanted(backend, prompt.ids[: prompt.start], answers[row], depth, reads)
        np.testing.assert_allclose(states, expected, atol=TOLERANCE, err_msg=f"row {row}, depth {depth}")


@pytest.mark.parametrize("prefill", [None, "w11 w12 w13"], ids=["no prefill", "prefill"])
@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", these(KEPT))
def test_a_mean_read_live_is_that_of_a_plain_pass_and_of_a_packed_one(family, options, prefill):
    backend = backend_of(family)
    prompt, reads = prompt_of(backend, prefill=prefill), mean_reads(backend)
    (plain,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, seed=3, **options)
    session = backend.open([prompt], max_new_tokens=MAX_NEW_TOKENS, seed=3, **options)
    (answer,), found = walk(session, [prompt], reads, (1, 2, 7, 7, 7, 12))
    session.close()
    ends = backend.end_tokens({})
    assert answer[prompt.prefill :] == [token for token in plain if token not in ends]
    assert len(found) >= 4 and not found[0, 0].any()
    compare(backend, [prompt], [answer], found, reads)
    if family in PACKED:
        depths = tuple(depth for _, depth in found)
        finished = FinishedAnswer(Prompt(prompt.ids[: prompt.start]), tuple(answer), depths)
        (packed,) = backend.read_batch([finished], sites_of(backend), tokens=LENGTHS)
        for place, depth in enumerate(depths):
            states = np.concatenate([packed[site][place] for site in sites_of(backend)])
            np.testing.assert_allclose(states, found[0, depth], atol=TOLERANCE)


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", these(KEPT))
def test_rows_of_different_length_each_have_their_own_mean(family, options):
    backend = backend_of(family)
    prompts = [prompt_of(backend, words=3, prefill=None), prompt_of(backend, words=12)]
    reads = (*mean_reads(backend), Read(default_site(backend.model), backend.header.read_index))
    bare = backend.open(prompts, max_new_tokens=MAX_NEW_TOKENS, seed=3, **options)
    unread, _ = walk(bare, prompts, reads, (1, 7, 7, 7, 14), lambda step: False)
    session = backend.open(prompts, max_new_tokens=MAX_NEW_TOKENS, seed=3, **options)
    answers, found = walk(session, prompts, reads, (1, 7, 7, 7, 14))
    assert answers == unread and {row for row, _ in found} == {0, 1}
    compare(backend, prompts, answers, found, reads)


@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("family", these(KEPT))
def test_a_mean_first_read_late_is_the_same(family, first):
    backend = backend_of(family)
    prompts, reads = [prompt_of(backend, words=3, prefill=None), prompt_of(backend)], mean_reads(backend)
    session = backend.open(prompts, max_new_tokens=MAX_NEW_TOKENS, **GREEDY)
    answers, found = walk(session, prompts, reads, (4, 7, 7, 7, 7), lambda step: step >= first)
    assert found
    compare(backend, prompts, answers, found, reads)


def passes_of(monkeypatch: pytest.MonkeyPatch, backend: TransformersBackend) -> list[int]:
    """How many tokens each pass of `read_tokens` from here on runs."""
    made, original = [], backend.read_tokens

    def counted(ids: torch.Tensor, *rest: Any) -> Any:
        made.append(ids.shape[1])
        return original(ids, *rest)

    monkeypatch.setattr(backend, "read_tokens", counted)
    return made


def test_a_mean_costs_no_pass_more_and_no_header(monkeypatch):
    backend = backend_of("Llama")
    made, prompt, reads = passes_of(monkeypatch, backend), prompt_of(backend), mean_reads(backend)
    session = backend.open([prompt], max_new_tokens=MAX_NEW_TOKENS, **GREEDY)
    walk(session, [prompt], reads, (5, 5))
    assert made == [1, 1]  # the newest token; the prefill is cached, and so is all that came before
    session = backend.open([prompt], max_new_tokens=MAX_NEW_TOKENS, **GREEDY)
    walk(session, [prompt], reads, (5, 5, 5), lambda step: step >= 2)
    assert made[2:] == [len(prompt.ids) + 9, 1, 1]  # what was decoded before the first mean is run once


def test_a_mean_of_other_sites_asked_later_is_the_same():
    backend = backend_of("Llama")
    prompt, (low, high) = prompt_of(backend), sites_of(backend)
    session = backend.open([prompt], max_new_tokens=MAX_NEW_TOKENS, **GREEDY)
    first = [Read(low, WHOLE)]
    answer = list(prompt.ids[prompt.start :])
    session.hidden_states([CheckPoint(0, 3)], first)
    for reads in (first, [Read(high, -3)], [Read(low, -3), Read(high, WHOLE)]):
        answer += session.decode(4)[0].token_ids
        states = session.hidden_states([CheckPoint(0, len(answer))], reads)
        compare(backend, [prompt], [answer], {(0, len(answer)): states[0]}, reads)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_dropped_row_does_not_change_the_means_of_the_others(rows):
    backend = backend_of("Llama")
    prompts = [prompt_of(backend, words=5), prompt_of(backend, words=3, prefill=None), prompt_of(backend, words=9)]
    reads = mean_reads(backend)
    session = backend.open(prompts, max_new_tokens=MAX_NEW_TOKENS, **GREEDY)
    session.hidden_states([CheckPoint(row, 0) for row in range(3)], reads)
    answers = [list(prompt.ids[prompt.start :]) for prompt in prompts]
    for step in range(4):
        if step == 2:
            for row in range(rows):
                session.drop(row)
        decoded = session.decode(5)
        for answer, got in zip(answers, decoded, strict=True):
            answer += got.token_ids[: len(got.token_ids) - got.end_tokens]
    assert not session.decode(1)[0].token_ids
    answers[2] += session._ids[2, -1:].tolist()
    states = session.hidden_states([CheckPoint(2, len(answers[2]))], reads)
    compare(backend, prompts, answers, {(2, len(answers[2])): states[0]}, reads)


def test_means_are_the_same_on_a_static_cache():
    backend = backend_of("Llama")
    prompts, reads = [prompt_of(backend, words=3, prefill=None), prompt_of(backend)], mean_reads(backend)
    session = backend.open(prompts, max_new_tokens=MAX_NEW_TOKENS, cache_implementation="static", **GREEDY)
    answers, found = walk(session, prompts, reads, (1, 7, 7, 7))
    assert type(session.cache).__name__ == "StaticCache" and len(found) > 8
    compare(backend, prompts, answers, found, reads)


def test_an_end_of_turn_is_no_part_of_the_mean():
    backend = backend_of("Llama")
    prompt, reads = prompt_of(backend, prefill=None), mean_reads(backend)
    eos = next(iter(backend.end_tokens({})))
    session = backend.replay_batch([prompt], [(20, 21, 22, eos)], [True], eos=eos)
    _, found = walk(session, [prompt], reads, (2, 2))
    assert list(found) == [(0, 0), (0, 2), (0, 3)]
    compare(backend, [prompt], [[20, 21, 22]], found, reads)


@pytest.mark.parametrize("family", ["Llama", "Jamba (hybrid)", "Mamba-2"])
def test_a_replay_reads_the_means_of_its_answer(family):
    backend = backend_of(family)
    prompt, reads, answer = prompt_of(backend, prefill=None), mean_reads(backend), list(range(20, 45))
    _, found = walk(backend.replay(prompt, answer), [prompt], reads, (1, 1, 8, 9, 6))
    assert [depth for _, depth in found] == [0, 1, 2, 10, 19, 25]
    compare(backend, [prompt], [answer], found, reads)


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("rows", [1, 2])
def test_means_are_read_through_the_base_weights_while_the_adapter_answers(rows, first):
    backend, base = adapted(base_weights=True), backend_of("Llama")
    prompts = [prompt_of(backend), prompt_of(backend, words=4, prefill=None)][:rows]
    reads = (*mean_reads(backend), Read(default_site(backend.model), backend.header.read_index))
    session = backend.open(prompts, max_new_tokens=MAX_NEW_TOKENS, **GREEDY)
    answers, found = walk(session, prompts, reads, (5, 5, 5), lambda step: step >= first)
    (plain,) = adapted().unguarded(prompts[:1], max_new_tokens=15, **GREEDY)
    assert tuple(answers[0][prompts[0].prefill :]) == plain
    compare(base, prompts, answers, found, reads)


def test_a_batch_is_packed_with_the_means_of_each_answer():
    backend = backend_of("Gemma-3")
    tokens = (3, -1, WHOLE, 0, -7)
    finished = []
    for words, depths in ((60, (0, 1, 25, 50)), (9, (0, 9)), (30, (30, 3, 12))):
        prompt = prompt_of(backend, prefill=" ".join(f"w{n}" for n in range(words)))
        finished.append(FinishedAnswer(Prompt(prompt.ids[: prompt.start]), prompt.ids[prompt.start :], depths))
    low, _ = sites_of(backend)
    reads = [Read(low, token) for token in tokens]
    for answer, states in zip(finished, backend.read_batch(finished, [low], tokens=tokens), strict=True):
        for depth, found in zip(answer.depths, states[low], strict=True):
            expected = wanted(backend, answer.prompt.ids, answer.answer_ids, depth, reads)
            np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_a_mean_does_not_depend_on_what_is_appended():
    backend = backend_of("Llama")
    site, _ = sites_of(backend)
    finished = FinishedAnswer(prompt_of(backend, prefill=None), tuple(range(20, 40)), (0, 5, 20))
    own, other = (
        backend.read_batch([finished], [site], tokens=[1, -4], suffix=suffix)[0][site] for suffix in (None, (7, 8))
    )
    np.testing.assert_allclose(own[:, 1], other[:, 1], atol=TOLERANCE)
    assert np.abs(own[1:, 0] - other[1:, 0]).max() > 0.01


def probe_on(backend: TransformersBackend, reads: Sequence[Read]) -> LinearProbe:
    """A probe with a random direction."""
    card = ProbeCard(backend.identity, backend.header.ids, tuple(reads), template_digest=backend.template.digest)
    weight = np.random.default_rng(1).standard_normal((len(reads), backend.identity.hidden_size))
    return LinearProbe(weight / 4, 0.0, card)


@pytest.mark.parametrize("header", [True, False], ids=["header too", "means only"])
@pytest.mark.parametrize("family", ["Llama", "Gemma-3", "Jamba (hybrid)"])
def test_a_guard_scores_each_depth_as_a_scan_does(family, header):
    backend = backend_of(family)
    site, _ = sites_of(backend)
    reads = [Read(site, -5), Read(site, WHOLE)] + [Read(site, backend.header.read_index)] * header
    guard = Guard.from_backend(backend, probe_on(backend, reads), schedule=Every(5), policy=Threshold(1.0))
    options = {"max_new_tokens": 22, "do_sample": True, "seed": 5}
    answer = guard.generate("w1 w2 w3", prefill=PREFILL, **options)
    prompt = guard.template.prompt("w1 w2 w3", prefill=PREFILL)
    (bare,) = backend.unguarded([prompt], **options)
    assert answer.token_ids == bare and not answer.halted and not answer.verdict.errors
    ends = backend.end_tokens({})
    whole = Prompt((*prompt.ids, *(token for token in bare if token not in ends)))
    whole = Prompt(whole.ids, len(whole.ids) - prompt.start)
    scan = scan_answer(backend, guard.detector, guard.config, whole)
    assert scan.method == ("packed" if family in PACKED else "forks")
    by_depth = {check.depth: check.score for check in scan.checks}
    compared = [check for check in answer.checks if check.depth in by_depth]
    assert len(compared) > 10 and len({round(check.score, 3) for check in compared}) > 5
    for check in compared:
        assert check.score == pytest.approx(by_depth[check.depth], abs=1e-4)


@pytest.mark.parametrize("family", ["Llama", "Jamba (hybrid)"])
def test_each_depth_inside_a_prefill_scores_as_if_it_ended_there(family):
    backend = backend_of(family)
    site, _ = sites_of(backend)
    reads = [Read(site, -5), Read(site, WHOLE)]
    guard = Guard.from_backend(backend, probe_on(backend, reads), schedule=Every(5), policy=Threshold(1.0))
    prompt = guard.template.prompt("w1 w2 w3", prefill=PREFILL)
    inside = inside_prefill(backend, guard.detector, guard.config, prompt)
    assert list(inside) == [1, 2, 4, *range(5, prompt.prefill, 5)]
    for depth, score in inside.items():
        assert isinstance(score, Score)
        shorter = Prompt(prompt.ids[: prompt.start + depth], depth)
        turns = guard.with_options(prefill="end").turns([shorter], max_new_tokens=1)
        checks = [event.check for turn in turns for _, event in turn if isinstance(event, Checked)]
        (at_end,) = [check.score for check in checks if check.depth == depth][:1]
        assert score.value == pytest.approx(at_end, abs=1e-4)


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.20"), reason="there every block runs on every token")
def test_a_site_that_does_not_run_on_every_token_is_refused_when_the_guard_is_opened():
    backend = test_prove.backend_of(
        "Gemma4TextConfig", "Gemma4ForCausalLM", **test_prove.SHARED, **test_prove.GEMMA, **test_prove.TWO_KINDS
    )
    last = Site(len(find_blocks(backend.model)) - 1)  # a block that shares keys and values of an earlier one
    with pytest.raises(UnsupportedModel, match=r"ran on 1 of \d+ tokens"):
        Guard.from_backend(backend, probe_on(backend, [Read(last, -5)]))
    Guard.from_backend(backend, probe_on(backend, [Read(default_site(backend.model), -5)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_that_runs_twice_in_a_pass_is_refused_when_the_guard_is_opened(dtype):
    model = tiny.tiny_model("Llama").to(dtype)
    model.model.layers[3].input_layernorm = model.model.layers[2].input_layernorm
    backend = TransformersBackend(model, tiny.tiny_tokenizer())
    with pytest.raises(UnsupportedModel, match=r"2\.input_layernorm ran on \d+ of \d+ tokens, it runs more than once"):
        Guard.from_backend(backend, probe_on(backend, [Read(Site(2), WHOLE)]))
    Guard.from_backend(backend, probe_on(backend, [Read(Site(1), WHOLE)]))


def numbered(*widths: int) -> dict[Site, list[torch.Tensor]]:
    """States of passes over so many columns each; each state is the number of its column."""
    every = torch.arange(float(sum(widths)))[None, :, None]
    return {Site(0): list(every.split(widths, 1))}


@pytest.mark.parametrize("takes_back", [False, True])
def test_states_of_more_columns_than_were_fed_are_refused(takes_back):
    def kept() -> AnswerStates:
        states = AnswerStates([Site(0)], 2, takes_back=takes_back)
        states.add(numbered(4), 4)
        return states

    exact = kept()
    exact.add(numbered(1, 1, 1), 7)
    assert torch.cat(exact.parts(Site(0), 0, 2, 7)).flatten().tolist() == [2, 3, 0, 1, 2]
    for widths, end in (((1, 1, 1, 1), 6), ((3, 3), 7), ((2, 2), 7), ((3,), 6), ((), 5), ((1,), 6)):
        with pytest.raises(UnsupportedModel, match=rf"ran on {sum(widths)} of {end - 4} tokens"):
            kept().add(numbered(*widths) if widths else {Site(0): []}, end)
    if takes_back:
        again = kept()
        again.add(numbered(1, 1, 1), 6)
        assert torch.cat(again.parts(Site(0), 0, 2, 6)).flatten().tolist() == [2, 3, 0, 1]
    else:
        with pytest.raises(UnsupportedModel, match="ran on 3 of 2 tokens, it runs more than once in a pass"):
            kept().add(numbered(1, 1, 1), 6)


def test_states_are_kept_in_the_models_own_format_and_the_mean_is_float32():
    backend = TransformersBackend(tiny.tiny_model("Llama").to(torch.bfloat16), tiny.tiny_tokenizer())
    prompt, (site, _) = prompt_of(backend), sites_of(backend)
    session = backend.open([prompt], max_new_tokens=20, **GREEDY)
    _, found = walk(session, [prompt], [Read(site, WHOLE)], (4, 4, 4))
    assert session._kept is not None
    parts = session._kept.parts(site, 0, 0, 10**6)
    assert {part.dtype for part in parts} == {torch.bfloat16} and len(parts) <= 4
    assert sum(map(len, parts)) == prompt.prefill + 11  # neither the prompt's nor the newest token's, not fed yet
    states = found[0, max(depth for _, depth in found)]
    assert states.dtype == np.float32 and (states != torch.tensor(states).bfloat16().float().numpy()).any()
    session.close()
    assert session._kept is None


def test_a_mean_over_a_state_that_was_not_kept_is_an_error_and_no_number():
    kept = AnswerStates([Site(0)], 2)
    kept.add({Site(0): [torch.ones(1, 5, 4)]}, 5)
    span = AnswerSpan((2,), (0,), kept)
    assert span.means(Site(0), -2, None, 5).tolist() == [[1.0] * 4]
    with pytest.raises(CheckError, match="3 of the 4 states"):
        span.means(Site(0), WHOLE, None, 6)
