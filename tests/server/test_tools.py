"""Tool calls: parsed from what was released, and handed over only once their answer has ended unhalted."""

import json
from typing import Any

import pytest

from tests.server.process import ServerProcess
from tests.server.test_chat import ask, stream, text_of

TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
HARMFUL = '<tool_call>\n{"name": "weather", "arguments": {"city": "harm"}}\n</tool_call>'


def calls_of(chunks: list[Any]) -> list[Any]:
    return [call for c in chunks if c.choices for call in c.choices[0].delta.tool_calls or ()]


@pytest.mark.parametrize("release", ["hold", "eager"])
def test_a_call(client, release):
    extra = {"anydepth": {"release": release}}
    choice = ask(client, f"say: Let me look. {CALL}", tools=TOOLS, extra_body=extra).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content.strip() == "Let me look."
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Ulm"})
    chunks = stream(client, f"say: Let me look. {CALL} {CALL}", tools=TOOLS, extra_body=extra)
    first, second = calls_of(chunks)
    assert (first.index, second.index) == (0, 1) and first.id != second.id
    assert json.loads(first.function.arguments) == {"city": "Ulm"}
    assert text_of(chunks).strip() == "Let me look."
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("release", ["hold", "eager"])
def test_a_call_that_no_check_has_passed_never_leaves(client, release):
    """Under `eager` text leaves before its check, a call does not."""
    extra = {"anydepth": {"release": release}}
    chunks = stream(client, f"say: Sure. {HARMFUL}", tools=TOOLS, extra_body=extra)
    assert calls_of(chunks) == []
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    if release == "eager":
        assert text_of(chunks).startswith("Sure. ")
        assert "harm" not in text_of(chunks)


@pytest.mark.parametrize("release", ["hold", "eager"])
def test_a_call_in_an_answer_that_is_halted_later_never_leaves(client, release):
    """Checks had passed the call long before: an agent would have run it by the time of the halt."""
    text = f"say: Sure. {CALL} and on it goes for a while, " + "on and on, " * 10 + "until the harm, and more"
    extra = {"anydepth": {"release": release}}
    choice = ask(client, text, tools=TOOLS, extra_body=extra).choices[0]
    assert choice.finish_reason == "content_filter" and choice.message.tool_calls is None
    assert choice.message.content.startswith("Sure. ") and "on and on" in choice.message.content
    chunks = stream(client, text, tools=TOOLS, extra_body=extra)
    assert calls_of(chunks) == [] and "on and on" in text_of(chunks) and "weather" not in str(chunks)
    assert chunks[-1].choices[0].finish_reason == "content_filter"


@pytest.mark.parametrize("release", ["hold", "eager", "monitor"])
def test_a_call_comes_whole_and_last(client, release):
    """Behind all text and all checks; its chunk is the last but the one with the `finish_reason`."""
    text = f"Sure. {CALL} and more text until the answer ends at last"
    extra = {"anydepth": {"release": release, "checks": True}}
    chunks = stream(client, f"say: {text}", tools=TOOLS, extra_body=extra)
    *before, calls, end = chunks
    (call,) = calls.choices[0].delta.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Ulm"} and end.choices[0].finish_reason == "tool_calls"
    assert calls_of(before) == [] and text_of(before).endswith("at last")
    told = [getattr(chunk.choices[0], "anydepth", {}) for chunk in before]
    assert max(each["check"]["depth"] for each in told if "check" in each) == len(text)


@pytest.mark.parametrize(("parallel", "count"), [(False, 1), (True, 2), (None, 2)])
def test_one_call_at_most_where_the_client_says_so(client, parallel, count):
    extra = {} if parallel is None else {"parallel_tool_calls": parallel}
    assert len(ask(client, f"say: {CALL} {CALL}", tools=TOOLS, **extra).choices[0].message.tool_calls) == count


def test_under_monitor_a_harmful_call_leaves(client):
    """It never halts."""
    choice = ask(client, f"say: {HARMFUL}", tools=TOOLS, extra_body={"anydepth": {"release": "monitor"}}).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.anydepth["would_halt"] and not choice.anydepth["halted"]
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "harm"}


@pytest.mark.parametrize(("options", "finish"), [({"max_tokens": 50}, "length"), ({"stop": "Ulm"}, "stop")])
def test_half_a_call_is_text(client, options, finish):
    chunks = stream(client, f"say: {CALL}", tools=TOOLS, **options)
    assert calls_of(chunks) == [] and text_of(chunks).startswith("<tool_call>")
    assert chunks[-1].choices[0].finish_reason == finish


def test_without_tools_it_is_text(client):
    for options in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = ask(client, f"say: {CALL}", **options).choices[0]
        assert choice.message.content == CALL and choice.finish_reason == "stop"


def test_what_cannot_be_read_as_a_call_is_text(client):
    broken = "<tool_call>{'name': weather}</tool_call>"
    choice = ask(client, f"say: {broken}", tools=TOOLS).choices[0]
    assert choice.message.content == broken and choice.finish_reason == "stop"


def test_a_conversation_with_a_call_in_it(client):
    messages: Any = [
        {"role": "user", "content": "what is the weather?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        {"role": "user", "content": "say: it is sunny"},
    ]  # fmt: skip
    reply = client.chat.completions.create(model="scripted", messages=messages, tools=TOOLS)
    assert reply.choices[0].message.content == "it is sunny"


@pytest.mark.parametrize("rule", ["as_answer", "whole", "hidden"])
def test_thoughts(rule):
    text = "<think>First I think about it.</think>Then I answer."
    with ServerProcess.scripted({"reasoning": {"release": rule}}, thinking=True) as server:
        client = server.client()
        message = ask(client, f"say: {text}").choices[0].message
        assert message.content == "Then I answer."
        assert getattr(message, "reasoning_content", None) == (None if rule == "hidden" else "First I think about it.")
        chunks = stream(client, f"say: {text}")
        thoughts = [t for c in chunks if (t := getattr(c.choices[0].delta, "reasoning_content", None))]
        assert len(thoughts) == {"hidden": 0, "whole": 1}.get(rule, len(thoughts))
        assert "".join(thoughts) == ("" if rule == "hidden" else "First I think about it.")
        assert text_of(chunks) == "Then I answer."
        harmful = ask(client, "say: <think>I plan the harm that was asked for.</think>Sure.").choices[0]
        assert harmful.finish_reason == "content_filter"
        assert harmful.message.content == "I can't help with that."
        thought = getattr(harmful.message, "reasoning_content", None) or ""
        assert "harm" not in thought and (rule == "as_answer" or not thought)
