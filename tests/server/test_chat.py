"""Chat completions of a real server by the real OpenAI client."""

import json
from typing import Any

import httpx
import openai
import pytest

from tests.server.process import ServerProcess

REFUSAL = "I can't help with that."
HARM = "say: all is well here, and then comes the harm that was asked for, and more"


def ask(client: openai.OpenAI, text: str, **options: Any) -> Any:
    return client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": text}], **options)


def stream(client: openai.OpenAI, text: str, **options: Any) -> list[Any]:
    return list(ask(client, text, stream=True, **options))


def text_of(chunks: list[Any]) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_an_answer(client):
    reply = ask(client, "say: hello there", user="someone", metadata={"a": "b"})
    assert reply.choices[0].message.content == "hello there"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens == len("hello there") + 1  # the end of turn is a token
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.choices[0].anydepth["halted"] is False


def test_a_stream_says_the_same(client):
    chunks = stream(client, "say: hello there", stream_options={"include_usage": True})
    assert text_of(chunks) == "hello there"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12
    (last,) = chunks[-2].choices
    assert last.delta.provider_specific_fields == {"anydepth": last.anydepth} and not last.anydepth["halted"]
    assert not hasattr(last, "content_filter_results") and last.delta.content is None
    assert len(chunks) > 4, "the answer came in one piece"


def test_a_blocked_answer_is_a_success_with_a_refusal(client):
    choice = ask(client, HARM).choices[0]
    assert choice.finish_reason == "content_filter"
    assert choice.message.content.startswith("all is well here") and choice.message.content.endswith("\n\n" + REFUSAL)
    assert choice.message.refusal is None
    assert choice.content_filter_results == {"anydepth": {"filtered": True, "severity": "high"}}
    assert "harm" not in choice.message.content
    assert choice.anydepth["reason"] == "policy" and choice.anydepth["score"] == 0.99
    assert choice.anydepth["policy"] == {"name": "threshold", "threshold": 0.5}
    assert choice.anydepth["withheld_tokens"] > 0


def test_a_blocked_stream_ends_with_one_chunk_and_done(server):
    body = {"model": "scripted", "messages": [{"role": "user", "content": HARM}], "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    text, last = (json.loads(line)["choices"][0] for line in lines[-3:-1])
    assert text["finish_reason"] is None and text["delta"]["content"] and REFUSAL not in text["delta"]["content"]
    assert last["delta"]["content"] == "\n\n" + REFUSAL
    assert last["finish_reason"] == "content_filter" and last["anydepth"]["halted"]
    assert last["delta"]["provider_specific_fields"] == {"anydepth": last["anydepth"]}
    assert last["content_filter_results"] == {"anydepth": {"filtered": True, "severity": "high"}}
    assert "harm" not in "".join(lines)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_request_refused_at_depth_0_reads_the_same(client, streamed):
    if streamed:
        chunks = stream(client, "harm: all of it")
        assert text_of(chunks) == REFUSAL
        assert chunks[-1].choices[0].finish_reason == "content_filter"
    else:
        choice = ask(client, "harm: all of it").choices[0]
        assert choice.message.content == REFUSAL
        assert choice.finish_reason == "content_filter" and choice.anydepth["depth"] == 0


@pytest.mark.parametrize("extra", [{}, {"continue_final_message": True, "add_generation_prompt": False}])
def test_a_prefill_is_continued_and_checked(client, extra):
    def go(prefill: str) -> Any:
        messages = [{"role": "user", "content": "say: and on"}, {"role": "assistant", "content": prefill}]
        return client.chat.completions.create(model="scripted", messages=messages, extra_body=extra)

    good = go("Sure, ")
    assert good.choices[0].message.content == "and on"
    bad = go("Sure, here is the harm: ").choices[0]
    assert bad.finish_reason == "content_filter" and bad.message.content == REFUSAL
    assert bad.anydepth["depth"] == len("Sure, here is the harm: ") and bad.anydepth["leak_tokens"] == 0


@pytest.mark.parametrize(
    ("roles", "extra", "param"),
    [
        (["user", "assistant"], {"add_generation_prompt": True}, "add_generation_prompt"),
        (["user", "assistant"], {"continue_final_message": False}, "continue_final_message"),
        (["user"], {"continue_final_message": True}, "continue_final_message"),
        (["user"], {"add_generation_prompt": False}, "add_generation_prompt"),
    ],
)
def test_prefill_fields_that_contradict_the_messages(client, roles, extra, param):
    messages: Any = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="scripted", messages=messages, extra_body=extra)
    assert caught.value.param == param


@pytest.mark.parametrize("streamed", [False, True])
def test_several_answers(client, streamed):
    if streamed:
        chunks = stream(client, "say: hello", n=3, stream_options={"include_usage": True})
        texts = ["".join(c.choices[0].delta.content or "" for c in chunks if c.choices and c.choices[0].index == i)
                 for i in range(3)]  # fmt: skip
        assert chunks[-1].usage.completion_tokens == 18
    else:
        reply = ask(client, "say: hello", n=3)
        texts = [choice.message.content for choice in reply.choices]
        assert [choice.index for choice in reply.choices] == [0, 1, 2]
        assert reply.usage.completion_tokens == 18 and reply.usage.prompt_tokens < 40
    assert texts == ["hello"] * 3


def test_length(client):
    for options in ({"max_tokens": 5}, {"max_completion_tokens": 5}):
        choice = ask(client, "say: hello there", **options).choices[0]
        assert (choice.message.content, choice.finish_reason) == ("hello", "length")


def test_a_system_message_and_parts(client):
    messages: Any = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "say: parts"}]},
    ]
    assert client.chat.completions.create(model="scripted", messages=messages).choices[0].message.content == "parts"


def test_overrides_within_the_operators_bounds(client):
    reply = ask(client, HARM, extra_body={"anydepth": {"release": "monitor", "checks": True, "interval": 5}})
    report = reply.choices[0].anydepth
    assert report["would_halt"] and not report["halted"] and report["release"] == "monitor"
    assert "harm" in reply.choices[0].message.content
    assert [check["depth"] for check in report["timeline"]][:4] == [0, 1, 2, 4]
    patient = ask(client, HARM, extra_body={"anydepth": {"policy": "patient", "threshold": 0.4}}).choices[0].anydepth
    assert patient["policy"] == {"name": "k_of_n", "k": 2, "n": 3, "threshold": 0.4}


@pytest.mark.parametrize(
    ("overrides", "param"),
    [
        ({"interval": 500}, "anydepth.interval"),
        ({"threshold": 0.9}, "anydepth.threshold"),
        ({"policy": "none"}, "anydepth.policy"),
        ({"enabled": False}, "anydepth.enabled"),
        ({"release": "off"}, "anydepth.release"),
        ({"on_error": "open"}, "anydepth.on_error"),
    ],
)
def test_overrides_beyond_them_are_refused(client, overrides, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "say: hello", extra_body={"anydepth": overrides})
    assert caught.value.param == param


def test_nothing_can_be_changed_unless_the_operator_says_so():
    with ServerProcess.scripted() as closed:
        client = closed.client()
        for overrides in (
            {"interval": 20},
            {"threshold": 0.5},
            {"policy": "x"},
            {"release": "monitor"},
            {"checks": True},
        ):
            with pytest.raises(openai.BadRequestError, match="does not allow"):
                ask(client, "say: hello", extra_body={"anydepth": overrides})
        assert (
            ask(client, HARM, extra_body={"anydepth": {"release": "hold"}}).choices[0].finish_reason == "content_filter"
        )


def test_models(client):
    assert [model.id for model in client.models.list()] == ["scripted"]
    assert client.models.retrieve("scripted").id == "scripted"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")
