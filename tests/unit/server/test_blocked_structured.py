"""A blocked answer to a request for JSON or for a call, as OpenAI's client reads it from vLLM's front."""

from typing import Any

import openai
import pydantic
import pytest

from tests.unit.server.openai_hosts import FILTERED, TOLD
from tests.unit.server.test_vllm_front import ASK, CALL, CLEAR, HALT, REFUSAL


class Booking(pydantic.BaseModel):
    city: str
    guests: int


HALF = '{"city": "Ulm", "guests": 1'
FORM = {"type": "json_schema", "json_schema": {"name": "Booking", "schema": Booking.model_json_schema()}}
STRUCTURED = [
    {"response_format": FORM},
    {"response_format": {"type": "json_object"}},
    {"tools": [CALL], "tool_choice": "required"},
    {"tools": [CALL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    {"extra_body": {"structured_outputs": {"choice": ["yes", "no"]}}},
]


@pytest.mark.parametrize("fields", STRUCTURED)
@pytest.mark.parametrize("text", [HALF, ""])
def test_a_structured_reply_that_is_blocked_is_a_refusal_alone(front, fields, text):
    create: Any = front.client.chat.completions.create
    front.vllm.answers = [(text, HALT, {"message": {"tool_calls": [CALL]}, "end": {"logprobs": {"content": []}}})]
    (choice,) = create(**ASK, **fields).choices
    front.vllm.answers = [(text, HALT, {})]
    assert choice.message.content is None and choice.message.refusal == REFUSAL and not choice.message.tool_calls
    assert choice.finish_reason == "content_filter" and choice.anydepth["halted"] and choice.logprobs is None
    assert choice.content_filter_results == FILTERED
    *before, last = [chunk.choices[0] for chunk in create(**ASK, **fields, stream=True)]
    assert "".join(each.delta.content or "" for each in before) == text
    assert last.delta.content is None and last.delta.refusal == REFUSAL and last.finish_reason == "content_filter"
    assert last.anydepth == last.delta.provider_specific_fields["anydepth"] == choice.anydepth


@pytest.mark.parametrize("text", [HALF, ""])
def test_openais_parsers_of_structured_replies_name_the_filter(front, text):
    """Not the JSON, as they would if text came behind half of it."""
    front.vllm.answers = [(text, HALT, {})]
    with pytest.raises(openai.ContentFilterFinishReasonError):
        front.client.chat.completions.parse(**ASK, response_format=Booking)
    helper = front.client.chat.completions.stream(**ASK, response_format=Booking)
    with helper as stream, pytest.raises(openai.ContentFilterFinishReasonError):
        stream.until_done()


@pytest.mark.parametrize("fields", [{"response_format": {"type": "text"}}, {"tools": [CALL], "tool_choice": "auto"}])
def test_other_requests_are_not_structured(front, fields):
    front.vllm.answers = TOLD["late"]
    (choice,) = front.client.chat.completions.create(**ASK, **fields).choices
    assert choice.message.content == "all is well\n\n" + REFUSAL and choice.message.refusal is None


def test_a_structured_reply_that_passes_is_left_alone(front):
    front.vllm.answers = [('{"city": "Ulm", "guests": 12}', CLEAR, {})]
    (choice,) = front.client.chat.completions.parse(**ASK, response_format=Booking).choices
    assert choice.message.parsed == Booking(city="Ulm", guests=12)


def test_a_plain_completion_has_no_field_for_a_refusal(front):
    front.vllm.answers = TOLD["late"]
    reply: Any = front.http.post("/v1/completions", json={"prompt": "x", "response_format": FORM}).json()
    assert reply["choices"][0]["text"] == "all is well\n\n" + REFUSAL
