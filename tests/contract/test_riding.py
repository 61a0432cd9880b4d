"""Checks that ride in the decode step: the same answers, the same scores, one pass a token."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from anydepth import Every, Guard, Threshold
from anydepth.backends.protocol import CONTENT, WHOLE, CheckPoint, Read, Site
from anydepth.backends.transformers import TransformersBackend, load
from anydepth.backends.transformers.cpu.operands import swap_operands
from anydepth.backends.transformers.riding_session import RidingSession
from anydepth.backends.transformers.session import TransformersSession
from anydepth.errors import ConfigError, UnsupportedModel
from anydepth.types import Checked, Finished, Released
from tests import tiny
from tests.contract.contract import (
    GREEDY,
    MAX_NEW_TOKENS,
    SAMPLED,
    TOLERANCE,
    LooksAhead,
    largest_difference,
    prompt_of,
    recomputed_read,
    run,
    watcher_for,
)
from tests.contract.test_inside_prefill import probe_of

NOT = ("Mamba", "hybrid", "linear", "RWKV")
RIDING = [family for family in tiny.FAMILIES if not any(word in family for word in NOT)]
ON_FORKS = [family for family in tiny.FAMILIES if any(word in family for word in NOT[:3])]
FEW = ["Llama", "Qwen2", "Gemma-3"]


def riding(family: str, ride: str = "always") -> TransformersBackend:
    return TransformersBackend(tiny.tiny_model(family), tiny.tiny_tokenizer(), ride=ride)


def early(tokens: Sequence[int], token: int) -> int:
    """Where `token` comes first in `tokens`; their number if it does not."""
    return tokens.index(token) if token in tokens else len(tokens)


@contextmanager
def passes_of(backend: TransformersBackend) -> Iterator[list[tuple[int, ...]]]:
    """The number of tokens of each forward pass that reaches the last block, in turn: of the pass, of the block."""
    seen: list[tuple[int, ...]] = []

    def note(_module: Any, _args: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).shape[1:2])

    with backend.model.model.layers[-1].register_forward_hook(note):
        yield seen


@pytest.mark.parametrize("family", RIDING)
@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_stream_is_the_unguarded_one_and_the_states_are_true(family: str, options: dict[str, Any]) -> None:
    backend = riding(family)
    prompt, watcher = prompt_of(backend), watcher_for(backend)
    (plain,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, seed=3, **options)
    (released,), (outcome,) = run(backend, [prompt], watcher, **options)
    assert released == plain and outcome.generated == len(plain)
    assert len(watcher.seen) >= 5
    assert largest_difference(backend, prompt, released, watcher) < TOLERANCE


@pytest.mark.parametrize("family", RIDING)
def test_a_check_that_rides_reads_what_one_on_a_fork_reads(family: str) -> None:
    backend = riding(family)
    prompt, seen = prompt_of(backend), {}
    for ride in ("always", "never"):
        backend.ride = ride
        watcher = watcher_for(backend)
        run(backend, [prompt], watcher, **GREEDY)
        seen[ride] = watcher.seen
    assert [point for point, _ in seen["always"]] == [point for point, _ in seen["never"]]
    for (_, mine), (_, theirs) in zip(seen["always"], seen["never"], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("family", FEW)
def test_rows_of_a_batch_ride_together(family: str) -> None:
    backend = riding(family)
    prompts = [prompt_of(backend, words=3, prefill=None), prompt_of(backend, words=12), prompt_of(backend, words=5)]
    watcher = watcher_for(backend)
    released, _ = run(backend, prompts, watcher, **GREEDY)
    for number, (prompt, tokens) in enumerate(zip(prompts, released, strict=True)):
        (alone,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, **GREEDY)
        assert tokens == alone
        own = watcher_for(backend)
        own.seen = [(point, state) for point, state in watcher.seen if point.row == number]
        assert len(own.seen) >= 5 and largest_difference(backend, prompt, tokens, own) < TOLERANCE


def test_some_rows_of_a_batch_end_and_others_ride_on() -> None:
    backend = riding("Qwen3")
    prompts = [prompt_of(backend, words=3, prefill=None), prompt_of(backend, words=12), prompt_of(backend, words=5)]
    whole = [backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, **GREEDY)[0] for prompt in prompts]
    ends = {token: [early(each, token) for each in whole] for tokens in whole for token in tokens}
    end = next(token for token, places in ends.items() if min(places) > 4 and len(set(places)) == len(places))
    options = {**GREEDY, "eos_token_id": end}
    released, outcomes = run(backend, prompts, watcher_for(backend), **options)
    assert released == [tokens[: early(tokens, end) + 1] for tokens in whole]
    assert "stop" in {outcome.finish_reason for outcome in outcomes}


def test_a_halted_row_does_not_disturb_the_others() -> None:
    backend = riding("Qwen2")
    prompts = [prompt_of(backend, words=3), prompt_of(backend, words=9)]
    session = backend.open(prompts, max_new_tokens=12, **GREEDY)
    reads, fresh = [Read(Site(2), 1)], ()
    for step in range(6):
        decoded = session.decode(2)
        fresh += decoded[1].token_ids
        rows = [0, 1] if step < 3 else [1]
        session.hidden_states([session.current(row) for row in rows], reads)
        if step == 2:
            session.drop(0)
    (alone,) = backend.unguarded([prompts[1]], max_new_tokens=12, **GREEDY)
    assert fresh == alone


# -- passes ------------------------------------------------------------------------------------------------------------


def test_each_token_is_fed_once_and_checked_in_that_pass() -> None:
    backend = riding("Llama")
    prompt, site = prompt_of(backend, prefill=None), Site(2)
    session = backend.open([prompt], max_new_tokens=6, **GREEDY)
    with passes_of(backend) as seen:
        for _ in range(6):
            session.decode(1)
            session.hidden_states([session.current(0)], [Read(site, 1)])
    # the prompt; then each token with two of the header; the last one goes no further and is read on a fork
    assert seen == [(len(prompt.ids),), *[(3,)] * 5]


def test_a_window_goes_on_from_the_pass_of_its_check() -> None:
    backend = riding("Llama")
    prompt = prompt_of(backend, prefill=None)
    session = backend.open([prompt], max_new_tokens=12, **GREEDY)
    with passes_of(backend) as seen:
        for _ in range(3):
            session.decode(4)
            session.hidden_states([session.current(0)], [Read(Site(2), 1)])
    assert seen == [(len(prompt.ids),), *[(1,)] * 3, (3,), *[(1,)] * 3, (3,), *[(1,)] * 3]


def test_a_check_that_is_made_twice_feeds_the_token_once() -> None:
    backend = riding("Llama")
    session = backend.open([prompt_of(backend)], max_new_tokens=12, **GREEDY)
    session.decode(3)
    with passes_of(backend) as seen:
        first = session.hidden_states([session.current(0)], [Read(Site(2), 2), Read(Site(1), 0)])
        again = session.hidden_states([session.current(0)], [Read(Site(1), 0)])
    assert len(seen) == 1
    np.testing.assert_array_equal(first[0, 1], again[0, 0])


@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize("rows", [1, 2])
def test_another_read_of_a_token_that_was_fed_is_made_on_a_fork(family: str, rows: int) -> None:
    """Also beyond a sliding window, where a fork cannot be rewound."""
    backend = riding(family)
    prompts = [prompt_of(backend), prompt_of(backend, words=4)][:rows]
    session = backend.open(prompts, max_new_tokens=40, **GREEDY)
    answers = [list(prompt.ids[prompt.start :]) for prompt in prompts]
    for _ in range(4):
        for answer, decoded in zip(answers, session.decode(9), strict=True):
            answer += decoded.token_ids
        points = [CheckPoint(row, len(answer)) for row, answer in enumerate(answers)]
        session.hidden_states(points, [Read(Site(1), 1)])
        reads = [Read(Site(3), CONTENT), Read(Site(2), 2)]
        for point, states in zip(points, session.hidden_states(points, reads), strict=True):
            for read, state in zip(reads, states, strict=True):
                prompt, answer = prompts[point.row], answers[point.row]
                want = recomputed_read(backend, prompt, answer, point.depth, read)
                assert np.abs(state - want).max() < TOLERANCE
    plain = backend.unguarded(prompts, max_new_tokens=36, **GREEDY)
    assert [tuple(answer[prompt.prefill :]) for prompt, answer in zip(prompts, answers, strict=True)] == plain


@pytest.mark.parametrize("family", FEW)
def test_looking_ahead_after_a_ride_disturbs_nothing(family: str) -> None:
    class Both(LooksAhead):
        def check(self, session: Any, points: Sequence[CheckPoint]) -> Any:
            session.hidden_states(points, [Read(Site(2), 1)])
            return super().check(session, points)

    backend = riding(family)
    prompt = prompt_of(backend)
    (released,), _ = run(backend, [prompt], Both(), **SAMPLED)  # pyright: ignore[reportArgumentType]
    assert (released,) == tuple(backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, seed=3, **SAMPLED))


@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize("tokens", [(-3, 1), (WHOLE,), (-4, CONTENT, 2)])
def test_means_over_the_answer_ride_too(family: str, tokens: tuple[int, ...]) -> None:
    backend, reads = riding(family), [Read(Site(2), token) for token in tokens]
    prompts = [prompt_of(backend), prompt_of(backend, words=3, prefill=None)]
    found = {}
    for ride in ("always", "never"):
        backend.ride = ride
        session = backend.open(prompts, max_new_tokens=40, **GREEDY)
        found[ride] = []
        for _ in range(8):
            session.decode(4)
            found[ride].append(session.hidden_states([session.current(0), session.current(1)], reads))
    np.testing.assert_allclose(found["always"], found["never"], atol=1e-5)


def test_a_pass_that_fails_leaves_the_answer_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = riding("Gemma-3")
    prompt = prompt_of(backend)
    session = backend.open([prompt], max_new_tokens=12, **GREEDY)
    fresh = session.decode(4)[0].token_ids
    with monkeypatch.context() as patch:
        patch.setattr(backend.model.model.layers[2].mlp, "forward", None)
        with pytest.raises(TypeError):
            session.hidden_states([session.current(0)], [Read(Site(1), 1)])
    fresh += session.decode(8)[0].token_ids
    assert [fresh] == backend.unguarded([prompt], max_new_tokens=12, **GREEDY)


def test_products_with_swapped_operands_ride() -> None:
    backend = riding("Llama")
    plain = backend.unguarded([prompt_of(backend)], max_new_tokens=MAX_NEW_TOKENS, **GREEDY)
    assert swap_operands(backend.model) > 0
    released, _ = run(backend, [prompt_of(backend)], watcher_for(backend), **GREEDY)
    assert released == plain


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"min_new_tokens": 20},
        {"prefill_chunk_size": 4},
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": [7, 8, 9]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_generate_are_as_without_checks(options: dict[str, Any]) -> None:
    backend, options = riding("Qwen2"), {**SAMPLED, **options}
    prompt = prompt_of(backend)
    (released,), _ = run(backend, [prompt], watcher_for(backend), **options)
    assert [released] == backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, seed=3, **options)


def test_hooks_of_the_model_see_each_pass_once() -> None:
    backend, seen = riding("Llama"), []
    session = backend.open([prompt_of(backend, prefill=None)], max_new_tokens=9, **GREEDY)
    with backend.model.register_forward_hook(lambda *_: seen.append(1)):
        for _ in range(3):
            session.decode(3)
            session.hidden_states([session.current(0)], [Read(Site(2), 1)])
    assert len(seen) == 1 + 2 + 1 + 2 + 1 + 2  # the last check is on a fork, and so ends at its block
    assert not backend.model._forward_hooks and "forward" not in vars(backend.model)


def test_answers_of_an_adapter_ride_unless_states_are_read_through_the_base_weights() -> None:
    pytest.importorskip("peft")
    from tests.contract.test_adapters import adapted

    backend = adapted(ride="always")
    prompt, watcher = prompt_of(backend), watcher_for(backend)
    (released,), _ = run(backend, [prompt], watcher, **GREEDY)
    assert [released] == backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, **GREEDY)
    assert largest_difference(backend, prompt, released, watcher) < TOLERANCE
    assert "through the base weights" in str(adapted(ride="auto", base_weights=True).ride_refusal({}))
    with pytest.raises(UnsupportedModel, match=r"ride is 'always'.*through the base weights"):
        adapted(ride="always", base_weights=True)


# -- which way ---------------------------------------------------------------------------------------------------------


def test_a_session_says_which_way_its_checks_are_made() -> None:
    for ride, kind, way in (("never", TransformersSession, "fork"), ("auto", RidingSession, "ride")):
        backend = riding("Llama", ride)
        session = backend.open([prompt_of(backend)], max_new_tokens=3)
        assert type(session) is kind and session.way == way
        facts = backend.describe()
        assert (facts["ride"], facts["rides"], facts["ride_reason"]) == (ride, way == "ride", None)


@pytest.mark.parametrize("family", ON_FORKS)
def test_a_cache_that_cannot_give_the_header_back(family: str) -> None:
    backend = riding(family, "auto")
    session = backend.open([prompt_of(backend)], max_new_tokens=3)
    assert session.way == "fork" and not backend.describe()["rides"]
    assert "which cannot give the header back" in backend.describe()["ride_reason"]
    with pytest.raises(UnsupportedModel, match=r"ride is 'always'.*LinearAttention.*cannot give.*ride='auto'"):
        riding(family, "always")


def test_a_static_cache_stays_on_the_fork() -> None:
    options = {**GREEDY, "cache_implementation": "static"}
    backend = riding("Llama", "auto")
    session = backend.open([prompt_of(backend)], max_new_tokens=3, **options)
    assert session.way == "fork"
    with pytest.raises(UnsupportedModel, match="its cache has a StaticLayer"):
        riding("Llama").open([prompt_of(backend)], max_new_tokens=3, **options)


def test_a_window_with_no_room_for_the_header() -> None:
    model = tiny.tiny_model("Gemma-3")
    model.config.sliding_window = 6
    backend = TransformersBackend(model, tiny.tiny_tokenizer(), ride="auto")
    assert backend.ride_refusal({}) == f"its window of 6 tokens has no room for a header of {len(backend.header.ids)}"


def test_an_option_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="ride is 'sometimes'; choose one of never, auto, always"):
        riding("Llama", "sometimes")
    with pytest.raises(ConfigError, match="ride is 'sometimes'"):
        load("no-such-folder", ride="sometimes")


def test_a_model_whose_last_token_sees_the_header_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that reads in both directions within a pass would."""
    for ride in ("auto", "always"):
        backend = riding("Llama", ride)
        block, real = backend.model.model.layers[-1], type(backend.model.model.layers[-1]).forward

        def leaky(states: torch.Tensor, *args: Any, real: Any = real, block: Any = block, **kwargs: Any) -> Any:
            out = real(block, states, *args, **kwargs)
            return out + out.mean(1, keepdim=True) if 1 < states.shape[1] < 6 else out

        monkeypatch.setattr(block, "forward", leaky)
        if ride == "auto":
            Guard.from_backend(backend, probe_of(backend), policy=Threshold(1.0))
            assert "differ by" in (backend.riding_refused or "")
            assert backend.open([prompt_of(backend)], max_new_tokens=3).way == "fork"
        else:
            with pytest.raises(UnsupportedModel, match=r"ride is 'always'.*differ by"):
                Guard.from_backend(backend, probe_of(backend), policy=Threshold(1.0))


def test_the_trial_of_a_guard_rides() -> None:
    backend = riding("Gemma-3")
    Guard.from_backend(backend, probe_of(backend), policy=Threshold(1.0))
    assert backend.riding_refused is None and backend.rides({})


# -- one token at a time -----------------------------------------------------------------------------------------------


def test_under_hold_each_token_leaves_with_the_pass_that_makes_the_next() -> None:
    """`Every(1)` checks each token in the pass that feeds it: the stream is one step behind, and no pass is added."""
    backend = riding("Llama")
    guard = Guard.from_backend(backend, probe_of(backend), policy=Threshold(1.0), schedule=Every(1))
    plain = guard.unguarded("w1 w2", max_new_tokens=5, do_sample=False)
    happened: list[Any] = []
    with passes_of(backend) as seen:
        for event in guard.stream("w1 w2", max_new_tokens=5, do_sample=False):
            if isinstance(event, Checked):
                happened.append(("check", event.check.depth, len(seen)))
            elif isinstance(event, Released):
                happened.append(("release", len(event.token_ids), len(seen)))
            elif isinstance(event, Finished):
                assert event.answer.text == plain and event.answer.finish_reason == "length"
    # What happened, and how many whole passes had been made by then: token t is fed and checked in pass t + 1, which
    # is the one that token t + 1 comes out of, and leaves before anything else is run. The last is checked on a fork.
    assert happened == [
        ("check", 0, 1),
        *[event for t in range(1, 5) for event in (("check", t, t + 1), ("release", 1, t + 1))],
        ("check", 5, 5),
        ("release", 1, 5),
    ]


def test_a_halt_at_one_token_withholds_that_token() -> None:
    backend = riding("Llama")
    probe = probe_of(backend)
    guard = Guard.from_backend(backend, probe, policy=Threshold(1.0), schedule=Every(1))
    for request in (f"w{n} w{n + 1}" for n in range(30)):
        checks = guard.generate(request, max_new_tokens=9, do_sample=False).checks
        at = max(checks, key=lambda check: check.score)
        before = max((check.score for check in checks[: at.depth]), default=1.0)
        if at.depth > 1 and at.score > before + 1e-3:
            break
    threshold = (before + at.score) / 2
    answer = guard.with_options(policy=Threshold(threshold)).generate(request, max_new_tokens=9, do_sample=False)
    assert answer.finish_reason == "content_filter" and answer.verdict.depth == at.depth
    assert [(each.start, each.stop, each.state) for each in answer.windows][-1] == (at.depth - 1, at.depth, "withheld")
