"""A check goes on from the cache of an answer: it reads what a pass over the whole text reads, and disturbs nothing."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model

from anydepth import Cascade, Guard, Rethink, Threshold
from anydepth.backends.protocol import CONTENT, WHOLE, CheckPoint, FinishedAnswer, Read, Site
from anydepth.backends.transformers import TransformersBackend
from anydepth.backends.transformers.resumed_session import ResumedSession
from anydepth.errors import PromptError
from anydepth.scan import begin_at
from anydepth.server.engine.transformers_engine import TransformersEngine
from anydepth.templates.template import Prompt
from tests import tiny
from tests.contract.contract import GREEDY, SAMPLED, TOLERANCE, LooksAhead, backend_of, prompt_of
from tests.contract.test_adapters import adapted
from tests.contract.test_architectures import SWITCH, phi
from tests.contract.test_inside_prefill import probe_of

NOT = ("Mamba", "hybrid", "linear", "RWKV")
KEPT = [family for family in tiny.FAMILIES if not any(word in family for word in NOT)]
RECURRENT = [family for family in tiny.FAMILIES if any(word in family for word in NOT[:3])]
FEW = ["Llama", "Gemma-3", "DeepSeek-V3 (MLA)"]
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"])
SITE = Site(2, "output")
SHORT = 12
"""Tokens that leave the sliding windows of the tiny models (24 tokens) whole, prompt and header included."""


def answered(backend: TransformersBackend, tokens: int, **options: Any) -> tuple[Any, Prompt, tuple[int, ...]]:
    """A session that has written `tokens` tokens and is still open, its prompt, and what it wrote."""
    prompt = prompt_of(backend, words=2, prefill=None)
    session = backend.open([prompt], max_new_tokens=64, seed=3, **(options or GREEDY))
    written: tuple[int, ...] = ()
    while len(written) < tokens:
        written += session.decode(tokens - len(written))[0].token_ids
    return session, prompt, written


@contextmanager
def fed_to(backend: TransformersBackend) -> Iterator[list[int]]:
    """How many tokens each forward pass is fed, in turn."""
    seen: list[int] = []
    embedding = backend.model.get_input_embeddings()
    with embedding.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape[1])):
        yield seen


def states_of(
    backend: TransformersBackend,
    prompt: Prompt,
    answer: Sequence[int],
    depths: tuple[int, ...],
    tokens: tuple[int, ...],
    *,
    resumes: bool,
) -> np.ndarray:
    (found,) = backend.read_batch([FinishedAnswer(prompt, tuple(answer), depths, resumes)], (SITE,), tokens=tokens)
    return found[SITE]


@pytest.mark.parametrize("family", KEPT)
@pytest.mark.parametrize("ended", [False, True], ids=["under way", "ended"])
def test_the_header_alone_is_run_and_reads_the_same(family: str, ended: bool) -> None:
    backend = backend_of(family)
    session, prompt, written = answered(backend, SHORT)
    if ended:
        session.close()
    index = backend.header.read_index
    with fed_to(backend) as fed:
        found = states_of(backend, prompt, written, (SHORT,), (index,), resumes=True)
    assert fed == [1 + index + 1], "the last token, which `generate` had not fed yet, and the header in one pass"
    anew = states_of(backend, prompt, written, (SHORT,), (index,), resumes=False)
    assert np.abs(found - anew).max() < TOLERANCE


@pytest.mark.parametrize("family", KEPT)
def test_what_follows_another_call_is_run_and_the_control_too(family: str) -> None:
    backend = backend_of(family)
    session, prompt, written = answered(backend, SHORT)
    session.close()
    other = (*written[:7], 9, 8, 7)
    tokens = (CONTENT, backend.header.read_index)
    with fed_to(backend) as fed:
        found = states_of(backend, prompt, other, (4, 10), tokens, resumes=True)
    assert fed == [3 + 1 + 2 * (backend.header.read_index + 1)], (
        "what the texts do not share, the token before the first header once more, and two headers"
    )
    anew = states_of(backend, prompt, other, (4, 10), tokens, resumes=False)
    assert np.abs(found - anew).max() < TOLERANCE


@pytest.mark.parametrize("family", ["Llama", "Gemma-3"])
@pytest.mark.parametrize("tokens", [(0, -3), (CONTENT, WHOLE), (CONTENT, 0, -3, WHOLE)])
@pytest.mark.parametrize("depths", [(0, 9), (5, 9), (12,)])
@pytest.mark.parametrize("seen", [False, True], ids=["no means before", "means kept"])
def test_means_and_depth_0_are_read_as_in_a_pass_over_the_whole_text(
    family: str, tokens: tuple[int, ...], depths: tuple[int, ...], seen: bool
) -> None:
    backend = backend_of(family)
    session, prompt, written = answered(backend, 6)
    if seen:
        session.hidden_states([CheckPoint(0, 6)], [Read(SITE, WHOLE)])
    written += session.decode(6)[0].token_ids
    session.close()
    with fed_to(backend) as fed:
        found = states_of(backend, prompt, written, depths, tokens, resumes=True)
    assert len(fed) <= 1 and sum(fed) < len(prompt.ids) + SHORT + len(depths) * (max((*tokens, CONTENT)) + 1)
    anew = states_of(backend, prompt, written, depths, tokens, resumes=False)
    assert np.abs(found - anew).max() < TOLERANCE
    if seen and depths == (12,):
        assert fed == [1 + max((*tokens, CONTENT)) + 1], "the states that the session kept are in the mean"


@pytest.mark.parametrize("family", ["Llama", "Gemma-3"])
def test_a_control_at_depth_0_runs_no_part_of_the_turn_again(family: str) -> None:
    backend = backend_of(family)
    session, prompt, written = answered(backend, SHORT)
    session.close()
    index = backend.header.read_index
    with fed_to(backend) as fed:
        found = states_of(backend, prompt, written, (0, SHORT), (CONTENT, index), resumes=True)
    assert fed == [1 + 2 + index + 1], "the last token, two tokens of the prompt once more, and the header"
    anew = states_of(backend, prompt, written, (0, SHORT), (CONTENT, index), resumes=False)
    assert np.abs(found - anew).max() < TOLERANCE


@pytest.mark.parametrize(
    ("family", "options", "ride"),
    [(family, GREEDY, "never") for family in KEPT] + [(family, SAMPLED, "always") for family in FEW],
)
def test_an_answer_under_way_is_not_disturbed(family: str, options: dict[str, Any], ride: str) -> None:
    backend = TransformersBackend(tiny.tiny_model(family), tiny.tiny_tokenizer(), ride=ride)
    session, prompt, written = answered(backend, 5, **options)
    (plain,) = backend.unguarded([prompt], max_new_tokens=64, seed=3, **options)
    while token_ids := session.decode(7)[0].token_ids:
        written += token_ids
        session.hidden_states([session.current(0)], [Read(SITE, 0)])  # rides, if it may
        states_of(backend, prompt, written, (2, len(written)), (CONTENT, 0), resumes=True)
        states_of(backend, prompt, (*written[:3], 9, 9, 9, 9), (7,), (0,), resumes=True)
        begin_at(backend, LooksAhead(), Prompt(prompt.ids + written, len(written)), [0, len(written)], resumes=True)
    assert written == plain


@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize("depths", [[12], [0, 12], [5, 9, 12]])
def test_a_look_ahead_goes_on_from_the_cache(family: str, depths: list[int]) -> None:
    backend = backend_of(family)
    session, prompt, written = answered(backend, SHORT)
    session.close()
    answer = (*written[:10], 9, 8)
    whole = Prompt(prompt.ids + answer, len(answer), prompt.messages)

    def found_by(replay: Any) -> tuple[list[Any], np.ndarray]:
        texts, numbers, at = [], [], 0
        with closing(replay(prompt, answer)) as again:
            for depth in depths:
                while at < depth:
                    at += len(again.decode(depth - at)[0].token_ids)
                point = [CheckPoint(0, depth)]
                texts.append((again.look_ahead(point, 4, lambda text: False), again.conversations(point)))
                numbers.append(again.next_token_logprobs(point)[0])
                numbers.extend(again.hidden_states(point, [Read(SITE, 0), Read(SITE, CONTENT)])[0])
        return texts, np.concatenate(numbers)

    assert isinstance(backend.resume(prompt, answer), ResumedSession)
    (texts, numbers), (texts_anew, numbers_anew) = found_by(backend.resume), found_by(backend.replay)
    assert texts == texts_anew and np.abs(numbers - numbers_anew).max() < 10 * TOLERANCE
    with fed_to(backend) as fed:
        begin_at(backend, LooksAhead(), whole, [12], resumes=True)
    begun, first = len(backend.header.ids) + len(backend.header.answer_ids), fed[0]
    assert first == 2 + begun, "the two tokens that the texts do not share, and the header"


@pytest.mark.parametrize("family", ["Mistral (sliding window)", "Gemma-3", "gpt-oss"])
def test_a_window_that_has_passed_is_run_anew(family: str) -> None:
    backend = backend_of(family)
    session, prompt, written = answered(backend, 30)
    session.close()
    with fed_to(backend) as fed:
        found = states_of(backend, prompt, written, (30,), (0,), resumes=True)
    assert fed == [len(prompt.ids) + 30, 1]
    assert np.abs(found - states_of(backend, prompt, written, (30,), (0,), resumes=False)).max() < TOLERANCE
    assert not isinstance(backend.resume(prompt, written), ResumedSession)


@pytest.mark.parametrize("words", [1, SWITCH], ids=["a prompt before the change", "behind it"])
@pytest.mark.parametrize("ended", [False, True], ids=["under way", "ended"])
def test_a_text_is_read_with_the_position_factors_of_its_own_length(words: int, ended: bool) -> None:
    backend = phi()
    prompt = prompt_of(backend, words=words, prefill=None)
    session = backend.open([prompt], max_new_tokens=64, **GREEDY)
    answer = session.decode(50)[0].token_ids
    assert len(prompt.ids) + len(answer) > SWITCH + len(backend.header.ids)
    if ended:
        session.close()
    for depth in (3, 12, 45):
        whole = Prompt(prompt.ids + answer[:depth], depth)
        if len(whole.ids) + len(backend.header.ids) <= SWITCH:
            found, anew = (states_of(backend, prompt, answer, (depth,), (0,), resumes=each) for each in (True, False))
            assert np.abs(found - anew).max() < TOLERANCE
        numbers = []
        for replay in (backend.resume, backend.replay):
            with closing(replay(prompt, answer)) as again:
                again.decode(depth)
                numbers.append(again.hidden_states([CheckPoint(0, depth)], [Read(SITE, 0)]))
        assert np.abs(numbers[0] - numbers[1]).max() < TOLERANCE
    assert isinstance(backend.resume(prompt, answer), ResumedSession) == (words == SWITCH)


def test_a_site_above_those_that_were_read_through_the_base_weights() -> None:
    backend = adapted(base_weights=True)
    session, prompt, written = answered(backend, SHORT)
    session.hidden_states([session.current(0)], [Read(Site(1, "output"), 0)])
    answer = FinishedAnswer(prompt, written, (SHORT,), resumes=True)
    for site in (Site(0, "output"), Site(1, "output"), Site(3, "output")):
        found, anew = (
            backend.read_batch([each], (site,), tokens=(0,))[0][site]
            for each in (answer, FinishedAnswer(prompt, written, (SHORT,)))
        )
        assert np.abs(found - anew).max() < TOLERANCE


@pytest.mark.parametrize("ended", [False, True], ids=["under way", "ended"])
def test_another_adapter_goes_on_from_nothing(ended: bool) -> None:
    model = get_peft_model(tiny.tiny_model("Llama"), LORA)
    model.add_adapter("other", LORA)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.5)
    backend = TransformersBackend(model, tiny.tiny_tokenizer())
    for change in (lambda: model.set_adapter("other"), model.base_model.disable_adapter_layers):
        session, prompt, written = answered(backend, SHORT)
        if ended:
            session.close()
        assert kept_tokens(backend, (*prompt.ids, *written)) == len(prompt.ids) + SHORT - 1
        change()
        found, anew = (states_of(backend, prompt, written, (7,), (0,), resumes=each) for each in (True, False))
        assert np.abs(found - anew).max() < TOLERANCE
        session.close()
        assert kept_tokens(backend, (*prompt.ids, *written)) == 0


def test_a_mean_at_depth_0_alone_is_zero() -> None:
    backend = backend_of("Llama")
    session, prompt, written = answered(backend, SHORT)
    session.close()
    for _ in range(4):
        np.full((1, 2, backend.identity.hidden_size), 7, np.float32)  # memory that the next array may be given
        assert not states_of(backend, prompt, written, (0,), (-3, WHOLE), resumes=True).any()


@pytest.mark.parametrize("family", FEW)
def test_trained_tokens_stand_behind_what_is_run(family: str) -> None:
    backend = backend_of(family)
    session, prompt, written = answered(backend, SHORT)
    session.close()
    tokens = np.random.default_rng(0).standard_normal((2, backend.identity.hidden_size)).astype(np.float32)
    answers = [FinishedAnswer(prompt, (*written[:9], 5, 4), (0, 6, 11), resumes) for resumes in (True, False)]
    found, anew = (
        backend.read_batch([each], (SITE,), tokens=(0, 1, CONTENT, -3), embeddings=tokens)[0][SITE] for each in answers
    )
    assert np.abs(found - anew).max() < TOLERANCE


@pytest.mark.parametrize("family", RECURRENT)
def test_recurrent_caches_are_not_kept(family: str) -> None:
    backend = backend_of(family)
    session, prompt, written = answered(backend, SHORT)
    assert session.kept_text() is None
    session.close()
    assert not isinstance(backend.resume(prompt, written), ResumedSession)


def kept_tokens(backend: TransformersBackend, text: Sequence[int]) -> int:
    found = backend.kept.longest(text, len(text), ())
    return 0 if found is None else found[1]


def test_an_ended_answer_gives_its_room_to_the_next() -> None:
    backend = backend_of("Llama")
    session, prompt, written = answered(backend, SHORT)
    text = (*prompt.ids, *written)
    session.close()
    assert kept_tokens(backend, text) == len(text) - 1
    with closing(backend.open([prompt_of(backend, words=5)], max_new_tokens=4)):
        assert kept_tokens(backend, text) == 0, "there is room for one, and it is under way"
    backend.kept.room = 2
    answered(backend, SHORT)[0].close()
    with closing(backend.open([prompt_of(backend, words=5)], max_new_tokens=4)):
        assert kept_tokens(backend, text) == len(text) - 1
    backend.kept.clear()
    assert kept_tokens(backend, text) == 0


def test_no_room_keeps_and_finds_nothing() -> None:
    backend = backend_of("Llama")
    backend.kept.room = 0
    session, prompt, written = answered(backend, SHORT)
    assert kept_tokens(backend, (*prompt.ids, *written)) == 0
    session.close()
    backend.kept.room = 1
    assert kept_tokens(backend, (*prompt.ids, *written)) == 0


def test_a_session_that_was_given_up_without_closing_takes_no_room() -> None:
    backend = backend_of("Llama")
    answered(backend, SHORT)  # nobody holds it
    session, prompt, written = answered(backend, SHORT)
    session.close()
    assert kept_tokens(backend, (*prompt.ids, *written)) > len(prompt.ids)


def test_what_a_failed_pass_has_left_is_not_kept() -> None:
    backend = backend_of("Llama")
    session, prompt, written = answered(backend, SHORT)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with backend.model.model.layers[2].register_forward_hook(fail), pytest.raises(RuntimeError, match="out of memory"):
        session.decode(3)
    session.close()
    assert kept_tokens(backend, (*prompt.ids, *written)) == 0


def test_batches_and_scans_go_on_from_nothing() -> None:
    backend = backend_of("Llama")
    prompts = [prompt_of(backend, words=n, prefill=None) for n in (2, 5)]
    with closing(backend.open(prompts, max_new_tokens=4)) as batch:
        batch.decode(4)
    assert kept_tokens(backend, prompts[0].ids) == 0
    session, prompt, written = answered(backend, SHORT)
    session.close()
    guard = Guard.from_backend(backend, probe_of(backend))
    with fed_to(backend) as fed:
        guard.scan_many([([{"role": "user", "content": "w0 w1"}], backend.decode_text(written))])
    assert fed[0] >= len(prompt.ids), "a scan gives the same figures whatever was answered before"


def test_a_text_that_does_not_fit_is_refused_all_the_same() -> None:
    backend = backend_of("Llama")
    session, prompt, written = answered(backend, SHORT)
    session.close()
    long = written + (9,) * int(backend.context_length or 0)
    with pytest.raises(PromptError, match="do not fit"):
        backend.resume(prompt, long)
    with pytest.raises(PromptError, match="do not fit"):
        states_of(backend, prompt, long, (len(long),), (0,), resumes=True)
    with pytest.raises(PromptError, match="empty"):
        backend.resume(prompt, ())


def test_gates_and_answers_of_several_threads_do_not_mix() -> None:
    backend = backend_of("Llama")
    backend.kept.room = 4
    probe = probe_of(backend)
    guard = Guard.from_backend(backend, Cascade(probe, Rethink(), low=0.0, high=1.0), policy=Threshold(1.0))
    options = {"max_new_tokens": 20, "do_sample": True, "seed": 1}

    def work(number: int) -> tuple[Any, ...]:
        asked = f"w{number} w1"
        answer = guard.generate(asked, **options)
        prompt = backend.template.prompt(asked)
        whole = Prompt(prompt.ids + answer.token_ids, len(answer.token_ids), prompt.messages)
        scores: list[Any] = begin_at(backend, guard.detector, whole, [3, whole.prefill], resumes=True)
        return answer.token_ids, [round(score.value, 4) for score in scores]

    alone = [work(number) for number in range(6)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(6))) == alone


@pytest.mark.parametrize(("keep", "room"), [(True, 3), (False, 0)])
def test_a_server_keeps_as_many_as_it_generates_at_a_time(keep: bool, room: int) -> None:
    backend = backend_of("Llama")
    guard = Guard.from_backend(backend, probe_of(backend))
    TransformersEngine(guard, model="tiny", live=3, keep=keep)
    assert backend.kept.room == room
