"""The Responses API of a real server by the real OpenAI client."""

import json
from functools import reduce
from typing import Any

import httpx
import openai
import pytest

from anydepth.audit.reading import read_records
from tests.server.process import ServerProcess
from tests.server.test_chat import HARM, REFUSAL
from tests.server.test_tools import CALL, HARMFUL

TOOLS: Any = [{"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}]


def ask(client: openai.OpenAI, asked: Any, **options: Any) -> Any:
    return client.responses.create(model="scripted", input=asked, **options)


def events(client: openai.OpenAI, asked: Any, **options: Any) -> list[Any]:
    found = list(ask(client, asked, stream=True, **options))
    assert [each.sequence_number for each in found] == list(range(len(found)))
    return found


def kinds(found: list[Any]) -> list[str]:
    """The types of events, those that repeat once."""
    names = [each.type.removeprefix("response.") for each in found]
    return [name for place, name in enumerate(names) if place == 0 or names[place - 1] != name]


def test_an_answer(client):
    reply = ask(client, "say: hello there", instructions="Be brief.", store=True, include=[], metadata={"a": "b"})
    assert (reply.status, reply.output_text, reply.incomplete_details) == ("completed", "hello there", None)
    (item,) = reply.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    assert reply.id.startswith("resp_") and reply.instructions == "Be brief." and reply.store is False
    assert reply.usage.output_tokens == len("hello there") + 1
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    assert reply.anydepth["halted"] is False and not hasattr(reply, "content_filter_results")


def test_encrypted_thoughts_may_be_asked_for_and_are_none(client):
    """LiteLLM asks for them with every request of its `/v1/messages`."""
    reply = ask(client, "say: hello there", include=["reasoning.encrypted_content"])
    assert reply.output_text == "hello there" and [item.type for item in reply.output] == ["message"]
    with pytest.raises(openai.BadRequestError, match=r"include\[0\]|include\.0"):
        ask(client, "say: hello there", include=["message.output_text.logprobs"])


def test_a_stream_says_the_same(client):
    found = events(client, "say: hello there")
    assert kinds(found) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    deltas = [each for each in found if each.type == "response.output_text.delta"]
    assert "".join(each.delta for each in deltas) == "hello there" and len(deltas) > 1, "it came in one piece"
    whole = ask(client, "say: hello there")
    last = found[-1].response
    assert last.output_text == whole.output_text and last.usage == whole.usage and last.anydepth == whole.anydepth
    assert {each.item_id for each in deltas} == {last.output[0].id}
    assert found[0].response.output == [] and found[0].response.status == "in_progress"


def test_events_are_named_and_nothing_follows_the_last(server):
    body = {"model": "scripted", "input": "say: hello", "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/responses", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        blocks = [block.split("\n") for block in response.read().decode().strip().split("\n\n")]
    for name, data in blocks:
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"
    assert blocks[-1][0] == "event: response.completed"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_blocked_answer_is_incomplete_by_the_content_filter(client, streamed):
    found = events(client, HARM) if streamed else []
    reply = found[-1].response if streamed else ask(client, HARM)
    assert reply.status == "incomplete" and reply.incomplete_details.reason == "content_filter"
    assert reply.output_text.startswith("all is well here") and reply.output_text.endswith("\n\n" + REFUSAL)
    assert "harm" not in str([each.model_dump() for each in found] or reply.model_dump())
    assert reply.output[0].status == "incomplete"
    assert reply.anydepth["reason"] == "policy" and reply.anydepth["withheld_tokens"] > 0
    assert reply.content_filter_results == {"anydepth": {"filtered": True, "severity": "high"}}
    if streamed:
        assert found[-1].type == "response.incomplete"
        deltas = [each.delta for each in found if each.type == "response.output_text.delta"]
        assert "".join(deltas) == reply.output_text and deltas[-1] == "\n\n" + REFUSAL


@pytest.mark.parametrize("streamed", [False, True])
def test_a_request_refused_at_depth_0_reads_the_same(client, streamed):
    reply = events(client, "harm: all")[-1].response if streamed else ask(client, "harm: all")
    assert reply.output_text == REFUSAL and reply.anydepth["depth"] == 0 and reply.status == "incomplete"


def test_length(client):
    reply = ask(client, "say: one two three", max_output_tokens=5)
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert reply.output_text == "one t" and reply.max_output_tokens == 5


@pytest.mark.parametrize("streamed", [False, True])
def test_calls_are_items_of_their_own(client, streamed):
    text = f"say: Let me look. {CALL} {CALL}"
    found = events(client, text, tools=TOOLS) if streamed else []
    reply = found[-1].response if streamed else ask(client, text, tools=TOOLS)
    message, first, second = reply.output
    assert message.content[0].text.strip() == "Let me look." and reply.status == "completed"
    assert first.type == "function_call" and first.name == "weather" and json.loads(first.arguments) == {"city": "Ulm"}
    assert first.call_id != second.call_id and first.id != second.id
    if streamed:
        done = [each for each in found if each.type == "response.function_call_arguments.done"]
        assert [each.output_index for each in done] == [1, 2] and done[0].arguments == first.arguments


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_that_no_check_has_passed_never_leaves(client, streamed):
    text = f"say: Sure. {HARMFUL}"
    found = events(client, text, tools=TOOLS) if streamed else [ask(client, text, tools=TOOLS)]
    reply = found[-1].response if streamed else found[0]
    assert reply.incomplete_details.reason == "content_filter"
    assert [item.type for item in reply.output] == ["message"] and "weather" not in str(reply.output)
    assert not any(each.type.startswith("response.function_call") for each in found if streamed)


def test_a_conversation_with_calls_and_their_outputs(client, server):
    """The client sends the whole conversation, as the Agents SDK does without a stored one."""
    first = ask(client, f"say: {CALL}", tools=TOOLS)
    call = next(item for item in first.output if item.type == "function_call")
    conversation = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "the weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        *[item.model_dump(exclude_none=True) for item in first.output],
        {"type": "function_call_output", "call_id": call.call_id, "output": "sun"},
        {"role": "user", "content": "say: fine"},
    ]
    assert ask(client, conversation, tools=TOOLS).output_text == "fine"


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"input": []}, "input", "send at least one entry"),
        ({"input": 3}, "input", "send a text, or a list of items"),
        ({"input": [{"type": "web_search_call"}]}, "input[0]", "send items of the types message, function_call"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type", "choose"),
        ({"input": [{"type": "function_call", "call_id": "a"}]}, "input[0].name", "is missing"),
        (
            {"input": [{"type": "function_call_output", "call_id": "a", "output": "x"}]},
            "input[0].call_id",
            "send the whole conversation",
        ),
        ({"input": [{"role": "system", "content": "x"}]}, "input", "append one of the user"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id", "not offered by this server"),
        ({"input": "x", "text": {"format": {"type": "json_object"}}}, "text.format", "not offered by this server"),
        ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format", "a schema goes with type"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type", "choose"),
        ({"input": "x", "tool_choice": "required", "tools": TOOLS}, "tool_choice", "not offered by this server"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"input": "x", "background": True}, "background", "not offered by this server"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type", "only 'function' is offered"),
        ({"input": "x", "max_output_tokens": 2000}, "max_output_tokens", "allows 1000 at most"),
        ({"input": [{"role": "user", "content": "x"}] * 21}, "input", "at most"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(server, body, param, said):
    reply = httpx.post(f"{server.url}/v1/responses", json={"model": "scripted", **body})
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["param"] == param and said in error["message"], error


@pytest.mark.parametrize("streamed", [False, True])
def test_an_engine_that_fails_in_the_middle(server, streamed):
    body = {"model": "scripted", "input": "break: all is well and on", "stream": streamed}
    with httpx.stream("POST", f"{server.url}/v1/responses", json=body) as response:
        text = response.read().decode()
    if streamed:
        *_, data = text.strip().split("\n\n")[-1].split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert event["type"] == "error" and event["code"] == "engine_error" and "broke over" not in text
        assert "response.completed" not in text
    else:
        assert response.status_code == 500 and json.loads(text)["error"]["code"] == "engine_error"


def test_overrides_and_the_checks_of_an_answer(client):
    extra = {"anydepth": {"interval": 3, "checks": True}}
    reply = ask(client, "say: hello there", extra_body=extra)
    assert [each["depth"] for each in reply.anydepth["timeline"]] == [0, 1, 2, 3, 6, 9, 11]


def test_an_error_in_place_of_a_block_where_the_operator_wants_one():
    settings = {"blocked": {"style": "error"}}
    with ServerProcess.scripted(settings) as running:
        for streamed in (False, True):
            with pytest.raises(openai.BadRequestError) as told:
                ask(running.client(), "harm: all", stream=streamed)
            body: Any = told.value.body
            assert told.value.code == "content_filter" and body["anydepth"]["depth"] == 0


def test_thoughts_are_an_item_of_their_own():
    with ServerProcess.scripted({}, thinking=True) as running:
        found = events(running.client(), "say: <think>well, well</think>It is fine.")
        first, second = found[-1].response.output
        assert first.type == "reasoning" and first.content[0].text.strip() == "well, well"
        assert second.content[0].text.strip() == "It is fine."
        assert "reasoning_text.delta" in kinds(found)


def test_the_audit_names_the_endpoint(client, audit_path):
    id = ask(client, "say: for the record").id
    found = {each.get("endpoint") for each in read_records(audit_path) if each.get("id") == id}
    assert "responses" in found and not found & {"chat", "completions"}


# -- answers of a form -------------------------------------------------------------------------------------------------

DEEP = reduce(lambda inner, _: {"items": inner}, range(65), {})
FORM: Any = {"format": {"type": "json_schema", "name": "Place", "schema": {"type": "object"}, "strict": True}}


@pytest.fixture(scope="module")
def forms():
    with ServerProcess.scripted({"tools": {"format": "hermes"}}, forms=True) as running:
        yield running.client()


@pytest.mark.parametrize("streamed", [False, True])
def test_json_comes_whole(forms, streamed):
    found = events(forms, 'say: {"city": "Ulm"}', text=FORM) if streamed else []
    reply = found[-1].response if streamed else ask(forms, 'say: {"city": "Ulm"}', text=FORM)
    assert reply.status == "completed" and json.loads(reply.output_text) == {"city": "Ulm"}
    assert reply.text.format.type == "json_schema" and reply.text.format.name == "Place"
    if streamed:
        assert [each.delta for each in found if each.type == "response.output_text.delta"] == ['{"city": "Ulm"}']


@pytest.mark.parametrize("streamed", [False, True])
def test_a_block_of_json_is_a_refusal_and_no_half_of_it(forms, streamed):
    said = 'say: {"city": "Ulm", "then": "the harm that was asked for"}'
    found = events(forms, said, text=FORM) if streamed else []
    reply = found[-1].response if streamed else ask(forms, said, text=FORM)
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "content_filter")
    ((part,),) = [item.content for item in reply.output]
    assert (part.type, part.refusal, reply.output_text) == ("refusal", REFUSAL, "")
    if streamed:
        assert [each.delta for each in found if each.type == "response.refusal.delta"] == [REFUSAL]
        (done,) = [each for each in found if each.type == "response.refusal.done"]
        assert done.refusal == REFUSAL and "Ulm" not in str(found)


def test_a_call_that_was_asked_for_by_name(forms):
    reply = ask(forms, f"say: {CALL}", tools=TOOLS, tool_choice={"type": "function", "name": "weather"})
    (call,) = reply.output
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Ulm"}
    assert reply.tool_choice.name == "weather"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": {"format": {"type": "json_schema", "schema": DEEP}}}, "text.format.schema"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "none"}}, "tool_choice.name"),
        ({"tools": [{**TOOLS[0], "parameters": {"type": "array"}}], "tool_choice": "required"}, "tools[0].parameters"),
    ],
)
def test_forms_that_cannot_be_kept_are_named_as_the_client_wrote_them(forms, fields, param):
    with pytest.raises(openai.BadRequestError) as told:
        ask(forms, "say: x", **fields)
    body: Any = told.value.body
    assert str(body["param"]).startswith(param) and "function.parameters" not in body["message"]
