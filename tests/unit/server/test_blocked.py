"""A blocked answer as OpenAI's client reads it, from the Transformers server, vLLM's front and a proxy alike."""

import json
from typing import Any

import openai
import pytest
from starlette.responses import Response

from anydepth.errors import ConfigError
from anydepth.server.engine.engine import AnswerTimeout, Busy, EngineError, ShuttingDown
from anydepth.server.http.http_errors import blocked, failure, refusal
from anydepth.settings import parse_settings
from tests.unit.server.openai_hosts import FILTERED, SAID, TOLD, Host, text_of
from tests.unit.server.test_vllm_front import ASK, REFUSAL


def completing(host: Host) -> Host:
    """The server, if it offers plain completions."""
    if host.engine == "proxy":
        pytest.skip("a proxy offers completions with the capability raw only: test_proxy_raw.py")
    return host


# -- chat: text and refusal --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["late", "first", "failed"])
def test_a_whole_reply_has_text_and_refusal_in_its_content(host, ends):
    choice = host().whole(ends)
    released = choice.message.content.removesuffix(REFUSAL)
    assert choice.message.content == released + REFUSAL and choice.message.refusal is None
    assert released == "" if ends == "first" else released.startswith("all") and released.endswith("\n\n")
    assert choice.finish_reason == "content_filter" and choice.content_filter_results == FILTERED
    assert choice.anydepth["halted"] and choice.anydepth["reason"] == ("error" if ends == "failed" else "policy")


@pytest.mark.parametrize("ends", ["late", "first", "failed"])
def test_a_stream_has_refusal_finish_reason_and_report_in_its_last_chunk(host, ends):
    running = host()
    whole = running.whole(ends)
    *before, last = [chunk.choices[0] for chunk in running.stream(ends)]
    assert last.delta.content == (REFUSAL if ends == "first" else "\n\n" + REFUSAL)
    assert last.finish_reason == "content_filter" and last.content_filter_results == FILTERED
    assert last.anydepth == whole.anydepth == last.delta.provider_specific_fields["anydepth"]
    assert all(each.finish_reason is None and not hasattr(each, "anydepth") for each in before)
    assert REFUSAL not in "".join(each.delta.content or "" for each in before)
    assert "".join(each.delta.content or "" for each in [*before, last]) == whole.message.content


def test_an_answer_that_passes_has_its_report_in_the_same_places(host):
    running = host()
    whole, chunks = running.whole("clear"), running.stream("clear")
    last = chunks[-1].choices[0]
    assert last.anydepth == whole.anydepth == last.delta.provider_specific_fields["anydepth"]
    assert not whole.anydepth["halted"] and last.finish_reason == whole.finish_reason == "stop"
    assert not hasattr(whole, "content_filter_results") and not hasattr(last, "content_filter_results")
    assert text_of(chunks) == whole.message.content == "all is well"


@pytest.mark.parametrize("ends", ["late", "first"])
def test_a_block_costs_one_request(host, ends):
    running = host()
    running.whole(ends)
    assert running.requests == 1


@pytest.mark.parametrize("ends", ["late", "first"])
def test_the_helpers_of_openais_client_raise(host, ends):
    """As for a block of OpenAI's own; `create` does not."""
    running = host()
    with pytest.raises(openai.ContentFilterFinishReasonError):
        running.client.chat.completions.parse(**running.ask(ends))
    helper = running.client.chat.completions.stream(**running.ask(ends))
    with helper as stream, pytest.raises(openai.ContentFilterFinishReasonError):
        stream.get_final_completion()


@pytest.mark.parametrize("stream", [False, True])
def test_a_plain_completion(host, stream):
    running = completing(host())
    asked = running.ask("first", stream=stream)
    asked["prompt"] = asked.pop("messages")[0]["content"]
    reply = running.client.completions.create(**asked)
    (choice,) = [each.choices[0] for each in reply] if stream else reply.choices
    assert (choice.text, choice.finish_reason) == (REFUSAL, "content_filter")
    assert choice.anydepth["depth"] == 0 and choice.content_filter_results == FILTERED


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_a_refusal_that_says_nothing_is_no_setting(blank):
    """Clients take an answer without text for a fault, and ask again."""
    with pytest.raises(ConfigError, match=r"guard\.refusal is '.*': clients take an answer without text .* a sentence"):
        parse_settings({"guard": {"refusal": blank}})


# -- [blocked] style = "error" -----------------------------------------------------------------------------------------

ERROR = {"blocked": {"style": "error"}}


@pytest.mark.parametrize("ends", ["late", "first", "failed"])
def test_a_block_in_a_whole_reply_is_an_error_where_the_operator_says_so(host, ends):
    running = host(**ERROR)
    with pytest.raises(openai.BadRequestError) as caught:
        running.whole(ends)
    error: Any = caught.value
    cause = "a check failed" if ends == "failed" else "the guard stopped it"
    assert (error.status_code, error.code, error.type) == (400, "content_filter", "invalid_request_error")
    assert error.body["message"] == f"the answer is blocked, since {cause}: {REFUSAL}"
    assert error.body["anydepth"]["halted"] and error.body["content_filter_results"] == FILTERED
    assert json.loads(error.response.headers["X-Anydepth"]) == error.body["anydepth"]
    assert error.response.headers["x-should-retry"] == "false" and running.requests == 1
    assert "all is" not in error.response.text


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_stream_of_which_nothing_has_left_is_one_too(host, api):
    running = host(**ERROR)
    asked = running.ask("first", stream=True, stream_options={"include_usage": True})
    create: Any = running.client.chat.completions.create
    if api == "completions":
        completing(running)
        asked["prompt"], create = asked.pop("messages")[0]["content"], running.client.completions.create
    with pytest.raises(openai.BadRequestError) as caught:
        create(**asked)
    assert caught.value.code == "content_filter" and json.loads(caught.value.response.headers["X-Anydepth"])["halted"]
    assert running.requests == 1


def test_a_stream_that_has_begun_ends_as_ever(host):
    running = host(**ERROR)
    chunks = running.stream("late")
    assert text_of(chunks).startswith("all is w") and text_of(chunks).endswith("\n\n" + REFUSAL)
    assert chunks[-1].choices[0].finish_reason == "content_filter" and chunks[0].choices[0].delta.role == "assistant"


def test_an_answer_that_passes_is_the_same(host):
    running = host(**ERROR)
    assert running.whole("clear").message.content == text_of(running.stream("clear")) == "all is well"


@pytest.mark.parametrize("stream", [False, True])
def test_one_good_answer_of_several_keeps_its_request_from_failing(host, stream):
    running = completing(host(**ERROR))
    asked = {**running.ask("clear", stream=stream), "prompt": [SAID["first"], SAID["clear"]]}
    if running.engine == "vllm":
        running.vllm.answers = [*TOLD["first"], *TOLD["clear"]]
    del asked["messages"]
    reply = running.client.completions.create(**asked)
    choices = [choice for part in reply for choice in part.choices] if stream else reply.choices
    texts = ["".join(choice.text for choice in choices if choice.index == index) for index in range(2)]
    assert texts == [REFUSAL, "all is well"]
    if running.engine == "vllm":
        running.vllm.answers = TOLD["first"] * 2
    with pytest.raises(openai.BadRequestError):
        running.client.completions.create(**{**asked, "prompt": [SAID["first"]] * 2})


def test_the_header_has_no_timeline():
    """It would be long."""
    response = blocked({"halted": True, "reason": "policy", "timeline": [{"depth": 0}]}, "Nö.")
    assert json.loads(response.headers["X-Anydepth"]) == {"halted": True, "reason": "policy"}
    assert json.loads(bytes(response.body))["error"]["anydepth"]["timeline"] == [{"depth": 0}]


@pytest.mark.parametrize("stream", [False, True])
def test_checks_are_in_the_body_where_a_client_may_see_them(host, stream):
    running = host(**ERROR, overrides={"checks": True})
    asked = running.ask("first", stream=stream, extra_body={"anydepth": {"checks": True}})
    if running.engine == "vllm":
        running.vllm.answers = [("", TOLD["first"][0][1] | {"timeline": [{"depth": 0, "score": 0.9}]}, {})]
    with pytest.raises(openai.BadRequestError) as caught:
        running.client.chat.completions.create(**asked)
    body: Any = caught.value.body
    assert [check["depth"] for check in body["anydepth"]["timeline"]] == [0]
    assert "timeline" not in caught.value.response.headers["X-Anydepth"]


def test_thoughts_of_a_stream_have_left_too():
    """What a client has seen cannot become an error."""
    running = Host("vllm", **ERROR)
    running.vllm.answers = TOLD["first"]

    def respond(name: str) -> Response:

        head = {"id": name, "object": "chat.completion.chunk", "created": 1, "model": "m"}
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, {"reasoning": "hm"}]
        records = [{**head, "choices": [{"index": 0, "delta": each, "finish_reason": None}]} for each in deltas]
        raw = "".join(f"data: {json.dumps(record)}\n\n" for record in records) + "data: [DONE]\n\n"
        return Response(raw, media_type="text/event-stream")

    running.vllm.respond = respond
    chunks = list(running.client.chat.completions.create(**ASK, stream=True))
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, "content_filter"]


def test_an_error_of_vllms_in_a_stream_that_has_not_begun_is_passed_on():

    running = Host("vllm", **ERROR)
    running.vllm.answers = TOLD["first"]
    raw = ': wait\n\ndata: {"error": {"message": "it failed"}}\n\ndata: [DONE]\n\n'
    running.vllm.respond = lambda _: Response(raw, media_type="text/event-stream")
    with pytest.raises(openai.APIError, match="it failed"):
        list(running.client.chat.completions.create(**ASK, stream=True))


@pytest.mark.parametrize("value", ["403", "Error", "", None, True])
def test_another_style_is_refused_by_name(value):
    with pytest.raises(ConfigError, match=r"blocked\.style is .*: input should be 'answer' or 'error'"):
        parse_settings({"blocked": {"style": value}})


def test_the_default_style():
    assert parse_settings({}).blocked.style == "answer"


# -- what is not asked again -------------------------------------------------------------------------------------------


def test_a_failed_generation_is_not_asked_for_again(host):
    """OpenAI's client has two retries left."""
    running = host()
    with pytest.raises(openai.InternalServerError) as caught:
        running.whole("broken")
    assert caught.value.response.headers["x-should-retry"] == "false" and running.requests == 1


@pytest.mark.parametrize(
    ("error", "status", "header"),
    [
        (AnswerTimeout("it took over 1 s"), 504, "false"),
        (EngineError("it failed"), 500, "false"),
        (RuntimeError("a fault of ours"), 500, "false"),
        (Busy("too many", 3), 429, None),
        (ShuttingDown("over"), 503, None),
    ],
)
def test_which_errors_are_worth_another_request(error, status, header):
    response = failure(error)
    assert (response.status_code, response.headers.get("x-should-retry")) == (status, header)


def test_an_answer_of_vllms_that_cannot_be_read_is_not_asked_for_again():
    assert refusal(500, "x").headers["x-should-retry"] == "false"
    assert "x-should-retry" not in refusal(404, "x").headers
