"""Trained Safety Tokens on real models: live, packed, inside a prefill and by forks, and who refuses them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from anydepth import Cascade, Every, Guard, Rethink, Threshold
from anydepth.backends.protocol import Capability, CheckPoint, FinishedAnswer, Read
from anydepth.backends.sglang.sglang_backend import SglangBackend
from anydepth.backends.transformers import TransformersBackend
from anydepth.backends.transformers.blocks import default_site
from anydepth.backends.transformers.read import read
from anydepth.detectors import LinearProbe
from anydepth.errors import CapabilityError, ProbeMismatch, UnsupportedModel
from anydepth.evals.instruments.interventions import largest_read
from anydepth.scan import inside_prefill, scan_answer
from anydepth.templates.template import Prompt
from anydepth.testing import ScriptedBackend
from anydepth.types import Checked
from anydepth.vllm.vllm_backend import VllmBackend
from tests import tiny
from tests.contract import test_prove
from tests.contract.contract import GREEDY, SAMPLED, TOLERANCE, backend_of, prompt_of
from tests.contract.test_adapters import adapted
from tests.contract.test_families import KEPT, PACKED, these
from tests.contract.test_inside_prefill import PREFILL, probe_of

QUESTION = " ".join(f"w{number}" for number in range(7))
FEW = ["Llama", "Qwen2", "Mistral (sliding window)", "Gemma-3"]


def rows_of(backend: TransformersBackend, ids: Any) -> np.ndarray:
    """What the embedding table gives for `ids`, float32 `[ids, hidden_size]`."""
    with torch.no_grad():
        return backend.model.get_input_embeddings()(torch.tensor(list(ids))).float().numpy()


def trained(backend: TransformersBackend, embeddings: np.ndarray, seed: int = 1) -> LinearProbe:
    """A probe with a random direction at the last of `embeddings`."""
    plain, count = probe_of(backend, seed), len(embeddings)
    card = replace(plain.card, safety_tokens=count, reads=(Read(default_site(backend.model), count - 1),))
    return LinearProbe(plain.weight, plain.bias, card, embeddings=embeddings)


def noise(backend: TransformersBackend, count: int) -> np.ndarray:
    """Embeddings as long as those of words, of no word."""
    scale = rows_of(backend, range(10, 60)).std()
    return np.random.default_rng(5).normal(0, scale, (count, backend.identity.hidden_size)).astype(np.float32)


def scores(guard: Guard, prefill: str | None = None, **options: Any) -> dict[int, float]:
    """Depth -> score of each check of an answer."""
    events = guard.stream(QUESTION, prefill=prefill, max_new_tokens=24, seed=3, **options)
    found = {event.check.depth: event.check for event in events if isinstance(event, Checked)}
    assert not [check.error for check in found.values() if check.error]
    return {depth: check.score for depth, check in found.items()}


def guard_of(backend: TransformersBackend, probe: LinearProbe) -> Guard:
    return Guard.from_backend(backend, probe, schedule=Every(5), policy=Threshold(1.0), release="monitor")


def recomputed(
    backend: TransformersBackend, prompt: Prompt, answer: Any, depth: int, embeddings: np.ndarray
) -> np.ndarray:
    """The last state of a plain pass over embeddings: of the text up to `depth`, then `embeddings`."""
    site = default_site(backend.model)
    text = rows_of(backend, [*prompt.ids[: prompt.start], *answer[:depth]])
    whole = torch.from_numpy(np.concatenate([text, embeddings]))[None]
    return read(backend.model, (site,), {"inputs_embeds": whole, "use_cache": False})[site][0, -1].numpy()


@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_headers_own_rows_give_the_headers_scores(family: str, options: dict[str, Any]) -> None:
    backend = backend_of(family)
    plain = probe_of(backend)
    probe = trained(backend, rows_of(backend, plain.card.probe_ids))
    innate, own = (scores(guard_of(backend, each), **options) for each in (plain, probe))
    assert innate.keys() == own.keys() and len(own) > 4
    assert {depth: own[depth] for depth in own if depth} == {depth: innate[depth] for depth in innate if depth}
    assert own[0] != innate[0], "at depth 0 they stand behind the whole generation prompt, the header is part of it"


@pytest.mark.parametrize("family", FEW)
def test_a_scan_of_the_headers_own_rows_gives_the_headers_scores(family: str) -> None:
    backend = backend_of(family)
    plain = probe_of(backend)
    probe = trained(backend, rows_of(backend, plain.card.probe_ids))
    prompt = prompt_of(backend, prefill=PREFILL)
    innate, own = (scan_answer(backend, each, guard_of(backend, each).config, prompt) for each in (plain, probe))
    assert (own.method, len(own.checks)) == ("packed", len(innate.checks))
    assert [(check.depth, check.score) for check in own.checks[1:]] == [
        (check.depth, check.score) for check in innate.checks[1:]
    ]


@pytest.mark.parametrize("family", these(KEPT))
@pytest.mark.parametrize("count", [1, 3])
def test_a_check_reads_what_a_pass_over_embeddings_reads(family: str, count: int) -> None:
    backend = backend_of(family)
    prompt, embeddings = prompt_of(backend, prefill=None), noise(backend, count)
    (reading,) = trained(backend, embeddings).reads
    answer = tuple(range(20, 56))
    session = backend.replay(prompt, answer)
    for depth in (0, 4, 11, 29):
        if depth:
            session.decode(depth - session.current(0).depth)
        (state,) = session.hidden_states([CheckPoint(0, depth)], [reading], embeddings=embeddings)
        assert np.abs(state[0] - recomputed(backend, prompt, answer, depth, embeddings)).max() < TOLERANCE


@pytest.mark.parametrize("family", these(KEPT))
def test_an_answer_is_the_unguarded_one(family: str) -> None:
    backend = backend_of(family)
    guard = guard_of(backend, trained(backend, noise(backend, 2)))
    prompt = backend.template.prompt(QUESTION)
    (plain,) = backend.unguarded([prompt], max_new_tokens=24, seed=3, **SAMPLED)
    answer = guard.generate(QUESTION, max_new_tokens=24, seed=3, **SAMPLED)
    assert answer.token_ids == plain and len(answer.checks) > 4


@pytest.mark.parametrize("family", these(PACKED))
def test_a_packed_pass_reads_what_checks_on_forks_read(family: str) -> None:
    backend = backend_of(family)
    embeddings, prompt = noise(backend, 2), prompt_of(backend, prefill=None)
    (reading,) = trained(backend, embeddings).reads
    long, short = (tuple(range(20, 20 + length)) for length in (36, 9))
    answers = [FinishedAnswer(prompt, long, (0, 3, 30, 36)), FinishedAnswer(prompt, short, (0, 9))]
    found = backend.read_batch(answers, [reading.site], tokens=[0, 1], embeddings=embeddings)
    for answer, states in zip(answers, found, strict=True):
        assert states[reading.site].shape == (len(answer.depths), 2, backend.identity.hidden_size)
        for place, depth in enumerate(answer.depths):
            expected = recomputed(backend, prompt, answer.answer_ids, depth, embeddings)
            assert np.abs(states[reading.site][place, 1] - expected).max() < TOLERANCE


def test_a_batch_of_rows_and_a_prefill_are_read_in_the_same_way() -> None:
    backend = backend_of("Gemma-3")
    probe = trained(backend, noise(backend, 2))
    (reading,) = probe.reads
    prompts = [prompt_of(backend, prefill=PREFILL), prompt_of(backend, words=3, prefill="w5 w6")]
    session = backend.open(prompts, max_new_tokens=8, **GREEDY)
    points = [CheckPoint(0, 0), CheckPoint(1, 0), session.current(0), session.current(1)]
    found = session.hidden_states(points, probe.reads, embeddings=probe.embeddings)
    assert probe.embeddings is not None
    for point, state in zip(points, found, strict=True):
        prompt = prompts[point.row]
        expected = recomputed(backend, prompt, prompt.ids[prompt.start :], point.depth, probe.embeddings)
        assert np.abs(state[0] - expected).max() < TOLERANCE, reading


def test_the_depths_inside_a_prefill_are_read_with_them() -> None:
    backend = backend_of("Llama")
    probe = trained(backend, noise(backend, 3))
    guard, prompt = guard_of(backend, probe), prompt_of(backend, prefill=PREFILL)
    inside = inside_prefill(backend, probe, guard.config, prompt)
    by_forks = scan_answer(backend, probe, guard.config, prompt, packed=False)
    forks = {check.depth: check.score for check in by_forks.checks}
    assert len(inside) >= 4
    for depth, score in inside.items():
        assert not isinstance(score, Exception) and score.value == pytest.approx(forks[depth], abs=1e-4)


def test_an_adapter_is_left_out_with_base_weights() -> None:
    """Depth 0 and the others are read as the model below the adapter reads them."""
    backend, base = adapted(base_weights=True), backend_of("Llama")
    embeddings, prompt = noise(base, 2), prompt_of(base, prefill=None)
    (reading,) = trained(base, embeddings).reads
    session = backend.open([prompt], max_new_tokens=6, **GREEDY)
    (at_start,) = session.hidden_states([CheckPoint(0, 0)], [reading], embeddings=embeddings)
    (decoded,) = session.decode(5)
    (later,) = session.hidden_states([session.current(0)], [reading], embeddings=embeddings)
    for depth, state in ((0, at_start), (5, later)):
        expected = recomputed(base, prompt, decoded.token_ids, depth, embeddings)
        assert np.abs(state[0] - expected).max() < TOLERANCE


@pytest.mark.parametrize("family", FEW)
def test_checks_of_them_ride_in_the_decode_step(family: str) -> None:
    model, tokenizer = tiny.tiny_model(family), tiny.tiny_tokenizer()
    plain, riding = (TransformersBackend(model, tokenizer, ride=ride) for ride in ("never", "always"))
    probe = trained(plain, noise(plain, 2))
    forked, ridden = (scores(guard_of(each, probe), **GREEDY) for each in (plain, riding))
    assert list(forked) == list(ridden) and list(ridden.values()) == pytest.approx(list(forked.values()), abs=1e-4)
    session = riding.open([prompt_of(riding, prefill=None)], max_new_tokens=4, **GREEDY)
    session.decode(2)
    point, embeddings = session.current(0), probe.embeddings
    assert embeddings is not None
    (own,) = session.hidden_states([point], probe.reads, embeddings=embeddings)
    assert session.ridden is not None and session.ridden.header == 2
    # what rode is not taken for what other tokens would have read
    others = [session.hidden_states([point], probe.reads, embeddings=each)[0] for each in (noise(plain, 2) * 2, None)]
    with_others = trained(plain, noise(plain, 2) * 2).embeddings
    fresh = plain.open([prompt_of(plain, prefill=None)], max_new_tokens=4, **GREEDY)
    fresh.decode(2)
    for found, each in zip((own, *others), (embeddings, with_others, None), strict=True):
        (expected,) = fresh.hidden_states([fresh.current(0)], probe.reads, embeddings=each)
        assert np.abs(found - expected).max() < TOLERANCE


def test_a_model_that_looks_at_ids_elsewhere_is_refused() -> None:
    options = {**test_prove.SHARED, **test_prove.GEMMA, **test_prove.TWO_KINDS}
    backend = test_prove.backend_of("Gemma4TextConfig", "Gemma4ForCausalLM", **options)
    with pytest.raises(UnsupportedModel, match=r"depends on the token's id too.*reads the template's header"):
        guard_of(backend, trained(backend, noise(backend, 2)))


def test_more_of_them_than_the_header_has_tokens_are_refused() -> None:
    backend = backend_of("Llama")
    room = len(backend.header.ids)
    guard_of(backend, trained(backend, noise(backend, room)))
    with pytest.raises(ProbeMismatch, match=rf"{room + 1} trained Safety Tokens, the model's header {room} tokens"):
        guard_of(backend, trained(backend, noise(backend, room + 1)))


def test_a_backend_that_cannot_feed_them_is_named_with_the_remedy() -> None:
    backend = backend_of("Llama")
    probe = trained(backend, noise(backend, 2))
    scripted = ScriptedBackend(["abc"], capabilities=frozenset({Capability.HIDDEN_STATES}))
    with pytest.raises(CapabilityError, match=r"needs trained Safety Tokens.*ScriptedBackend.*load the model with Tr"):
        probe.bind(scripted)
    assert Capability.EMBEDDINGS not in ScriptedBackend(["abc"]).capabilities


@pytest.mark.parametrize("engine", [VllmBackend, SglangBackend])
def test_engines_that_append_ids_refuse_them(engine: Any) -> None:
    backend = backend_of("Llama")
    with pytest.raises(CapabilityError, match=rf"needs trained Safety Tokens.*{engine.__name__}.*load the model with"):
        trained(backend, noise(backend, 2)).bind(object.__new__(engine))


def test_what_appends_the_header_itself_refuses_them() -> None:
    backend = backend_of("Llama")
    with pytest.raises(CapabilityError, match="an intervention appends the template's header; the probe has 2 trained"):
        largest_read(trained(backend, noise(backend, 2)))


def test_a_cascade_may_have_such_a_probe_in_front() -> None:
    backend = backend_of("Llama")
    probe = trained(backend, noise(backend, 2))
    guard = Guard.from_backend(backend, Cascade(probe, Rethink(max_new_tokens=2), 0.0, 1.0), schedule=Every(5))
    alone = scores(guard_of(backend, probe), **GREEDY)
    both = scores(guard.with_options(policy=Threshold(1.0), release="monitor"), **GREEDY)
    assert both.keys() == alone.keys()
    halves = {depth: (score / 2, (score + 1) / 2) for depth, score in alone.items()}
    assert all(both[depth] in halves[depth] for depth in both), "the other half is the look-ahead's"
