"""The guard over a scripted backend: events, text, batches and what it refuses to be built from."""

import asyncio
import dataclasses
import math
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anydepth import Guard
from anydepth.errors import ConfigError, PromptError
from anydepth.schedule import Every
from anydepth.testing import END, ScriptedBackend, ScriptedDetector
from anydepth.types import Answer, Checked, Event, Finished, Halted, Released, Score, Window

CALM = ScriptedDetector({0: 0.125})


def guard_of(*answers: str | Sequence[int], scores: Any = CALM, at_most: Sequence[int] = (), **options: Any) -> Guard:
    detector = scores if isinstance(scores, ScriptedDetector) else ScriptedDetector(scores)
    return Guard.from_backend(ScriptedBackend(answers, at_most=at_most), detector, **options)


def kinds(events: Sequence[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Released))


# -- one answer --------------------------------------------------------------------------------------------------------


def test_events_of_an_answer_that_passes() -> None:
    events = list(guard_of("abc").stream("hi"))
    assert kinds(events) == ["Checked"] * 2 + ["Released", "Checked"] + ["Released", "Checked", "Released", "Finished"]
    assert [event.text for event in events if isinstance(event, Released)] == ["a", "b", "c"]
    assert [event.depth for event in events if isinstance(event, Released)] == [1, 2, 4]
    assert [event.check.depth for event in events if isinstance(event, Checked)] == [0, 1, 2, 3]
    assert events[-1] == Finished(
        Answer(
            text="abc",
            token_ids=(*b"abc", END),
            finish_reason="stop",
            verdict=dataclasses.replace(finished(events).verdict, halt=False, score=0.125, depth=0),
            checks=tuple(event.check for event in events if isinstance(event, Checked)),
            windows=(Window(0, 1, 1, "released"), Window(1, 2, 2, "released"), Window(2, 4, 3, "released")),
            prompt_tokens=5,  # <|user|>hi<|end|><|assistant|>
            prefill_tokens=0,
            generated_tokens=4,
        )
    )


def finished(events: Sequence[Event]) -> Answer:
    assert isinstance(events[-1], Finished)
    return events[-1].answer


def test_events_of_an_answer_that_is_halted() -> None:
    events = list(guard_of("abcdefgh", scores={0: 0.0, 4: 1.0}).stream("hi"))
    assert kinds(events)[-3:] == ["Checked", "Halted", "Finished"]
    assert kinds(events).count("Halted") == 1
    answer, halted = finished(events), events[-2]
    assert isinstance(halted, Halted)
    assert (halted.withheld, halted.verdict, halted.refusal) == (2, answer.verdict, "I can't help with that.")
    assert answer.text == "ab\n\nI can't help with that."
    assert (answer.finish_reason, answer.halted, answer.leak) == ("content_filter", True, 2)
    assert (answer.token_ids, answer.generated_tokens) == (tuple(b"ab"), 4)
    assert answer.windows[-1] == Window(2, 4, 4, "withheld")


def test_eager_sends_first_and_counts_the_leak() -> None:
    events = list(guard_of("abcdefgh", scores={0: 0.0, 4: 1.0}, release="eager").stream("hi"))
    assert kinds(events)[1:] == [
        "Released",
        "Checked",
        "Released",
        "Checked",
        "Released",
        "Checked",
        "Halted",
        "Finished",
    ]
    assert finished(events).text == "abcd\n\nI can't help with that."
    assert finished(events).leak == 4
    assert {window.state for window in finished(events).windows} == {"released"}


def test_eager_streams_within_a_window() -> None:
    events = list(guard_of("x" * 60, release="eager", schedule=Every(25, doubling=False)).stream("hi"))
    sizes = [len(event.token_ids) for event in events if isinstance(event, Released)]
    assert max(sizes) <= 4
    assert sum(sizes) == 61


def test_monitor_says_what_hold_would_have_done_and_releases_all() -> None:
    guard = guard_of("abcdefgh", scores={0: 0.0, 4: 0.75}, release="monitor")
    answer, held = guard.generate("hi"), guard.with_options(release="hold").generate("hi")
    assert (answer.text, answer.finish_reason, answer.leak) == ("abcdefgh", "stop", 0)
    assert answer.verdict == held.verdict
    assert answer.verdict.halt
    assert not answer.halted


def test_refused_at_depth_zero() -> None:
    guard = guard_of("abc", scores={0: 1.0}, refusal="No.")
    assert kinds(list(guard.stream("hi"))) == ["Checked", "Halted", "Finished"]
    answer = guard.generate("hi", prefill="Sure")
    assert (answer.text, answer.token_ids, answer.generated_tokens, answer.windows) == ("No.", (), 0, ())
    assert (answer.prompt_tokens, answer.prefill_tokens) == (5, 4)


def test_a_prefill_is_counted_and_not_released() -> None:
    guard = guard_of("abcdef", scores={0: 0.0, 6: 1.0})
    answer = guard.generate("hi", prefill="Sure")
    assert [check.depth for check in answer.checks] == [0, 4, 5, 6]
    assert (answer.text, answer.leak) == ("a\n\nI can't help with that.", 1)
    events = guard.stream("hi", prefill="Sure")
    assert [event.depth for event in events if isinstance(event, Released)] == [5]
    as_message = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure"}]
    assert guard.generate(as_message) == answer


def test_max_new_tokens_ends_with_length_and_a_check() -> None:
    answer = guard_of("abcdefgh").generate("hi", max_new_tokens=3)
    assert (answer.text, answer.finish_reason) == ("abc", "length")
    assert answer.checks[-1].depth == 3


texts = st.text(
    st.characters(codec="utf-8", exclude_characters="\ufffd") | st.sampled_from("é漢😀👩‍🚀नि"), min_size=1, max_size=30
)


@settings(deadline=None)
@given(texts, st.lists(st.integers(1, 5), max_size=4), st.sampled_from(["hold", "eager", "monitor"]), st.integers(1, 9))
def test_characters_of_several_tokens_are_never_broken(
    text: str, at_most: list[int], release: str, interval: int
) -> None:
    guard = guard_of(text, at_most=at_most, release=release, schedule=Every(interval))
    events = list(guard.stream("hi", prefill="é"))
    assert "\ufffd" not in text_of(events)
    assert text_of(events) == text == finished(events).text == guard.unguarded("hi")


@settings(deadline=None)
@given(texts, st.integers(1, 40), st.sampled_from(["hold", "eager"]))
def test_a_halted_answer_is_a_beginning_and_one_refusal(text: str, depth: int, release: str) -> None:
    guard = guard_of(text, scores={0: 0.0, depth: 1.0}, release=release, refusal="Je préfère pas.")
    events = list(guard.stream("hi"))
    answer = finished(events)
    begun = text_of(events)
    assert text.startswith(begun)
    assert answer.halted == (depth <= len(text.encode()))
    if answer.halted:
        assert answer.text == begun + ("\n\n" if begun.strip() else "") + "Je préfère pas."
        assert b"".join(bytes([i]) for i in answer.token_ids if i != END).startswith(begun.encode())
        assert kinds(events).count("Halted") == 1
    else:
        assert answer.text == text
    assert answer.token_ids == tuple(i for e in events if isinstance(e, Released) for i in e.token_ids)
    assert answer.leak == (len(answer.token_ids) if answer.halted else 0)


def test_an_answer_cut_within_a_character_says_so_at_its_end() -> None:
    events = list(guard_of("né").stream("hi", max_new_tokens=2))
    assert [event.text for event in events if isinstance(event, Released)] == ["n", "", "\ufffd"]
    assert finished(events).text == "n\ufffd"


def test_an_empty_answer_is_empty() -> None:
    answer = guard_of([END]).generate("hi")
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", (END,), "stop")


def test_sampling_options_reach_the_backend() -> None:
    guard = guard_of("abc")
    guard.generate("hi", seed=7, temperature=0.5, do_sample=True)
    [session] = guard.backend.sessions  # type: ignore[attr-defined]
    assert session.options == {"seed": 7, "temperature": 0.5, "do_sample": True}
    assert session.closed


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_of_answers() -> None:
    def score(row: int, depth: int) -> float:
        return float(row == 1 and depth >= 2)

    guard = guard_of("abcdef", "abcdef", "né", scores=score)
    conversations: Any = ["one", "two", [{"role": "user", "content": "three"}]]
    answers: Any = guard.generate(conversations, prefill=["", None, "Sure"])
    assert [answer.text for answer in answers] == ["abcdef", "a\n\nI can't help with that.", "né"]
    assert [answer.finish_reason for answer in answers] == ["stop", "content_filter", "stop"]
    assert [answer.prefill_tokens for answer in answers] == [0, 0, 4]
    assert [answer.prompt_tokens for answer in answers] == [6, 6, 8]
    [session] = guard.backend.sessions  # type: ignore[attr-defined]
    assert session.closed


def test_single_in_single_out_and_list_in_list_out() -> None:
    guard = guard_of("abc")
    conversation = [{"role": "user", "content": "hi"}]
    single = guard.generate("hi")
    assert isinstance(single, Answer)
    assert guard.generate(conversation) == single
    assert guard.generate(tuple(conversation)) == single
    assert guard.generate(["hi"]) == guard.generate([conversation]) == [single]


def test_one_prefill_is_for_all() -> None:
    answers = guard_of("abc", "abc").generate(["one", "two"], prefill="Sure")
    assert [answer.prefill_tokens for answer in answers] == [4, 4]


def test_prefills_must_fit_the_batch() -> None:
    with pytest.raises(ConfigError, match="1 prefills were given for 2"):
        guard_of("abc", "abc").generate(["one", "two"], prefill=["Sure"])


@pytest.mark.parametrize(
    "messages", [[], (), "", "  ", [[]], ["hi", ""], [{"role": "user"}], [["hi"]], {"role": "user"}, 5]
)
def test_messages_that_cannot_be_answered(messages: Any) -> None:
    guard = guard_of("abc", "abc")
    with pytest.raises(PromptError):
        guard.generate(messages)
    assert guard.backend.sessions == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("most", [0, -1, True, 1.5, None])
def test_max_new_tokens_is_refused_before_a_session_is_opened(most: Any) -> None:
    guard = guard_of("abc")
    with pytest.raises(ConfigError, match="max_new_tokens"):
        guard.generate("hi", max_new_tokens=most)
    assert guard.backend.sessions == []  # type: ignore[attr-defined]


# -- failures and ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [RuntimeError("no"), math.nan, 7, "harmless", None, Score("x")])  # type: ignore[arg-type]
def test_a_failing_detector_fails_closed_unless_told_otherwise(failure: Any) -> None:
    guard = guard_of("abcd", scores={0: 0.0, 2: failure, 3: 0.0})
    answer = guard.generate("hi")
    assert (answer.text, answer.verdict.reason, answer.verdict.depth) == ("a\n\nI can't help with that.", "error", 2)
    opened = guard.with_options(on_error="open").generate("hi")
    assert (opened.text, opened.finish_reason, opened.verdict.errors) == ("abcd", "stop", 1)
    assert [check.depth for check in opened.checks if check.error] == [2]


def test_closing_a_stream_early_closes_its_session() -> None:
    guard = guard_of("abcdef")
    stream: Any = guard.stream("hi")
    while not isinstance(next(stream), Released):
        pass
    [session] = guard.backend.sessions  # type: ignore[attr-defined]
    assert not session.closed
    stream.close()
    assert session.closed


def test_an_error_of_the_backend_is_raised_and_closes_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(session: Any, n: int) -> Any:
        raise RuntimeError("lost the device")

    guard = guard_of("abcdef")
    monkeypatch.setattr("anydepth.testing.ScriptedSession.decode", broken)
    with pytest.raises(RuntimeError, match="lost the device"):
        guard.generate("hi")
    assert guard.backend.sessions[0].closed  # type: ignore[attr-defined]


async def test_astream_gives_the_events_of_stream() -> None:
    guard = guard_of("abcdef", scores={0: 0.0, 4: 1.0})
    assert [event async for event in guard.astream("hi", prefill="é")] == list(guard.stream("hi", prefill="é"))
    assert all(session.closed for session in guard.backend.sessions)  # type: ignore[attr-defined]


async def test_closing_an_astream_early_closes_its_session() -> None:
    guard = guard_of("abcdef")
    stream: Any = guard.astream("hi")
    async for event in stream:
        if isinstance(event, Released):
            break
    await stream.aclose()
    assert guard.backend.sessions[0].closed  # type: ignore[attr-defined]


async def test_cancelling_an_astream_within_a_step_closes_its_session_after_the_step() -> None:
    checking, go_on = threading.Event(), threading.Event()

    def score(row: int, depth: int) -> float:
        checking.set()
        assert go_on.wait(30)
        assert not guard.backend.sessions[0].closed, "closed under a step that was still running"  # type: ignore[attr-defined]
        return 0.0

    async def consume() -> None:
        async for _ in guard.astream("hi"):
            pass

    guard = guard_of("abcdef", scores=score)
    task = asyncio.create_task(consume())
    assert await asyncio.to_thread(checking.wait, 30)
    task.cancel()
    for _ in range(10):
        await asyncio.sleep(0)  # the task learns of it, and asks a thread to close the stream
    await asyncio.to_thread(go_on.set)  # queued behind that
    with pytest.raises(asyncio.CancelledError):
        await task
    assert guard.backend.sessions[0].closed  # type: ignore[attr-defined]
