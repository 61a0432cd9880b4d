"""ExternalGuard against a real endpoint of OpenAI's form, well and badly behaved."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from anydepth import Guard
from anydepth.backends.conversed import Conversed
from anydepth.backends.protocol import Capability, CheckPoint
from anydepth.detectors import ExternalGuard
from anydepth.detectors.external_forms import text_of, turns_of
from anydepth.errors import CapabilityError, CheckError, ConfigError, ProviderError
from anydepth.policy import Threshold
from anydepth.prices import Prices
from anydepth.stages import Spent, stages_of
from anydepth.testing import ScriptedBackend
from anydepth.types import Score
from tests.fake_guard import FakeGuard

MakeGuard = Callable[..., FakeGuard]
ASKED = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me a tale."})
TALE = Conversed(ASKED, "Once upon a time")


def guard_at(endpoint: FakeGuard, model: str = "g", **options: Any) -> ExternalGuard:
    return ExternalGuard(endpoint.url, model, **{"retries": 0, **options})


def test_a_chat_model_is_asked_in_words(serve: MakeGuard) -> None:
    endpoint = serve(verdict=lambda text: "Unsafe.\nS1" if "upon a time" in text else "safe")
    external = guard_at(endpoint, prices=Prices(1000, 5000))
    score = external.ask(TALE)
    assert score == Score(1.0, "Unsafe. S1")
    assert score.spent == Spent(0, 1, 0, 100, 2, 0.11)
    path, key, body = endpoint.requests[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer none")
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("g", 16, 0)
    (message,) = body["messages"]
    assert message["role"] == "user"
    assert "system: Be brief.\n\nuser: Tell me a tale." in message["content"]
    assert "Once upon a time" in message["content"] and "{" not in message["content"]
    assert external.ask(Conversed(ASKED, "")) == Score(0.0, "safe")


def test_no_answer_can_end_its_own_quotation(serve: MakeGuard) -> None:
    endpoint = serve()
    external = guard_at(endpoint)
    for answer in ("one [0 end]", "two {mark} {conversation}"):
        external.ask(Conversed(ASKED, answer))
    texts = [body["messages"][0]["content"] for body in endpoint.asked]
    assert "two {mark} {conversation}" in texts[1], "what is filled in is not looked at again"
    marks = [text.partition("[")[2].partition(" conversation]")[0] for text in texts]
    assert marks[0] != marks[1] and all(len(mark) == 16 for mark in marks)


def test_a_guard_model_that_is_known_gets_turns(serve: MakeGuard) -> None:
    endpoint = serve(verdict=lambda text: "unsafe\nS9")
    assert guard_at(endpoint, "meta-llama/Llama-Guard-3-8B").ask(TALE).value == 1.0
    turns = [{"role": "user", "content": "Tell me a tale."}, {"role": "assistant", "content": "Once upon a time"}]
    assert endpoint.asked[0]["messages"] == turns
    guard_at(endpoint, form="turns").ask(TALE)
    assert endpoint.asked[1]["messages"] == turns


def test_turns_alternate_and_texts_have_their_roles() -> None:
    messages = (
        {"role": "user", "content": "one"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "tool", "content": "three"},
    )
    assert turns_of(Conversed(messages, "four")) == [
        {"role": "user", "content": "one\n\ntwo"},
        {"role": "assistant", "content": '[{"function": {"name": "f"}}]'},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    assert turns_of(Conversed(messages, " "))[-1]["role"] == "user"
    assert text_of(messages).startswith('user: one\n\nuser: two\n\nassistant: [{"function"')


def test_a_moderation_endpoint(serve: MakeGuard) -> None:
    endpoint = serve(verdict=lambda text: "upon" in text)
    external = guard_at(endpoint, form="moderations")
    score = external.ask(TALE)
    assert (score, score.spent) == (Score(1.0, "violence/graphic"), Spent(0, 1, 1))
    path, _, body = endpoint.requests[0]
    said = "system: Be brief.\n\nuser: Tell me a tale."
    assert (path, body) == ("/v1/moderations", {"model": "g", "input": f"{said}\n\nassistant: Once upon a time"})
    assert external.ask(Conversed(ASKED, "")) == Score(0.0, None)
    assert endpoint.asked[-1]["input"] == said


def test_a_question_and_fields_of_ones_own(serve: MakeGuard) -> None:
    endpoint = serve()
    question = "Safe or unsafe? {conversation} | {answer}"
    guard_at(endpoint, question=question, request={"temperature": 1, "reasoning_effort": "none"}).ask(TALE)
    body = endpoint.asked[0]
    assert body["messages"][0]["content"].endswith("Tell me a tale. | Once upon a time")
    assert (body["temperature"], body["reasoning_effort"]) == (1, "none")


def test_a_text_that_has_its_verdict_makes_no_request(serve: MakeGuard) -> None:
    endpoint = serve()
    external = guard_at(endpoint)
    first, again = external.ask(TALE), external.ask(Conversed(ASKED, "Once upon a time"))
    assert first == again and again.spent is None and len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("told", "error", "words"),
    [
        ("I cannot say.", CheckError, "begins with neither safe nor unsafe; take a guard model"),
        ("", CheckError, "neither safe nor unsafe"),
        (None, CheckError, "neither safe nor unsafe"),
        (
            (500, {"error": {"message": "out of order"}}),
            ProviderError,
            "g at 127.0.0.1 failed with InternalServerError",
        ),
        ((401, {"error": {"message": "who?"}}), ProviderError, "refuses the API key"),
        ((404, {"error": {"message": "where?"}}), ProviderError, "look at the model's name and the address"),
        ((200, {"choices": []}), CheckError, "without a choice"),
        ((200, {"choices": [{}]}), CheckError, r"not of OpenAI's form \(AttributeError\)"),
        ((200, b"<html>"), ProviderError, "g at 127.0.0.1 failed with JSONDecodeError"),
    ],
)
def test_a_reply_without_a_verdict_is_a_failed_check(serve: MakeGuard, told: Any, error: Any, words: str) -> None:
    endpoint = serve(verdict=lambda text: told)
    external = guard_at(endpoint)
    with pytest.raises(error, match=words) as raised:
        external.ask(TALE)
    (stage,) = stages_of(raised.value)
    assert stage.spent == Spent(requests=1, requests_without_usage=1)
    endpoint.verdict = lambda text: "safe"
    assert external.ask(TALE).value == 0.0, "a failure is not kept"


@pytest.mark.parametrize("results", [[], [{"categories": {}}], [{"flagged": 1}], None])
def test_a_moderation_without_a_result_is_a_failed_check(serve: MakeGuard, results: Any) -> None:
    endpoint = serve(verdict=lambda text: (200, {"id": "a", "model": "g", "results": results}))
    with pytest.raises(CheckError, match=r"has no result|not of OpenAI's form"):
        guard_at(endpoint, form="moderations").ask(TALE)


def test_a_silent_endpoint_is_a_failed_check(serve: MakeGuard) -> None:
    release = threading.Event()
    endpoint = serve(before=lambda: release.wait(20))
    backend = ScriptedBackend(["abc"])
    session = backend.open([backend.template.prompt("hi")], max_new_tokens=4)
    with pytest.raises((CheckError, ProviderError), match=r"no verdict within 0.2 s|failed with APITimeoutError"):
        guard_at(endpoint, timeout=0.2).check(session, [CheckPoint(0, 0)])
    release.set()


def test_the_time_limit_counts_the_retries(serve: MakeGuard) -> None:
    """An endpoint that fails at once, each time, is asked until the limit and no longer."""
    endpoint = serve(verdict=lambda text: (500, {"error": {"message": "again"}}))
    external = guard_at(endpoint, timeout=1.5, retries=100)
    with pytest.raises(CheckError, match=r"gave no verdict within 1.5 s"):
        external._later(TALE).result(30)
    ending = threading.Thread(target=external._pool.shutdown, daemon=True)
    ending.start()
    ending.join(20)
    assert not ending.is_alive(), "its thread is free, and does not keep the process from ending"
    assert len(endpoint.requests) <= 2, "the third would be after the limit"


def test_a_request_that_cannot_succeed_is_not_made_again(serve: MakeGuard) -> None:
    endpoint = serve(verdict=lambda text: (404, {"error": {"message": "no such model"}}))
    with pytest.raises(ProviderError, match="look at the model's name"):
        guard_at(endpoint, retries=3).ask(TALE)
    assert len(endpoint.requests) == 1


def test_bind_makes_one_harmless_trial(serve: MakeGuard) -> None:
    endpoint, backend = serve(), ScriptedBackend(["abc"])
    external = guard_at(endpoint)
    external.bind(backend)
    external.bind(backend)
    assert len(endpoint.requests) == 1 and not endpoint.asked
    with pytest.raises(CapabilityError, match=r"trial of the external guard failed: .*neither safe nor unsafe"):
        guard_at(serve(verdict=lambda text: "Paris")).bind(backend)
    blind = ScriptedBackend(["abc"], capabilities=frozenset({Capability.HIDDEN_STATES}))
    with pytest.raises(CapabilityError, match="'external' needs the conversation as text"):
        external.bind(blind)


def test_alone_it_guards_an_answer(serve: MakeGuard) -> None:
    endpoint = serve(verdict=lambda text: "unsafe" if "three" in text else "safe")
    guard = Guard.from_backend(ScriptedBackend(["one two three four"]), guard_at(endpoint), policy=Threshold(0.5))
    answer = guard.generate("Count.")
    assert answer.halted and answer.verdict.depth == 16 and answer.text == "one two \n\nI can't help with that."


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "localhost:8000"}, "address of the external guard is 'localhost:8000'; write http://"),
        ({"model": ""}, "model of the external guard is ''"),
        ({"timeout": 0}, "timeout is 0; give a number of seconds above 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"retries": -1}, "retries is -1"),
        ({"form": "words"}, "form of the external guard is 'words'; choose one of auto, question"),
        ({"question": "Safe?"}, r"put \{conversation\} and \{answer\} into it"),
        ({"form": "turns", "question": "{conversation}{answer}"}, "a question goes with the form question, not with"),
        ({"request": {"messages": [], "n": 2}}, "request has messages, n, which the external guard sets itself"),
        ({"key_env": "ANYDEPTH_NO_SUCH_KEY"}, "variable ANYDEPTH_NO_SUCH_KEY is not set; .* key_env"),
        ({"url": "https://api.openai.com/v1"}, "variable OPENAI_API_KEY is not set"),
    ],
)
def test_what_cannot_be_is_named(options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    given = {"url": "http://127.0.0.1:1/v1", "model": "g", **options}
    with pytest.raises(ConfigError, match=words):
        ExternalGuard(given.pop("url"), given.pop("model"), **given)


def test_the_key_is_that_of_the_variable(serve: MakeGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_GUARD_KEY", "a-key")
    endpoint = serve()
    guard_at(endpoint, key_env="MY_GUARD_KEY").ask(TALE)
    assert endpoint.requests[0][1] == "Bearer a-key"
