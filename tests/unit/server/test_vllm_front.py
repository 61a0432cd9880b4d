"""The guard's front of vLLM's server, through the real ASGI stack, before an application that answers as vLLM does."""

import json
import os
import re
from collections.abc import Callable  # noqa: TC003
from dataclasses import fields
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from unittest import mock

import httpx
import pytest
from prometheus_client import REGISTRY, generate_latest
from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from typer.testing import CliRunner

from anydepth.cli import app
from anydepth.errors import ConfigError, MissingExtra
from anydepth.guard_report import GuardReport
from anydepth.settings import parse_settings
from anydepth.vllm.front.middleware import GuardFront
from anydepth.vllm.front.reports import Reports
from anydepth.vllm.launch import FRONT, engine_options, server_command
from anydepth.vllm.report_field import PREFIX

REFUSAL = "No."
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
CLEAR: dict[str, Any] = {
    "halted": False, "would_halt": False, "depth": 4, "score": 0.2, "reason": "clear", "failed_checks": 0,
    "release": "hold", "policy": {"name": "threshold", "threshold": 0.5}, "checks": 3, "released_tokens": 4,
    "withheld_tokens": 0, "leak_tokens": 0, "detector": "probe", "prefill": 0, "generated": 4,
}  # fmt: skip
HALT = CLEAR | {
    "halted": True, "would_halt": True, "score": 0.9, "reason": "policy", "released_tokens": 2, "withheld_tokens": 3,
    "leak_tokens": 2,
}  # fmt: skip
REFUSED = {"halted": True, "reason": "refused", "error": "anydepth.interval is 500", "param": "anydepth.interval"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}


def reason(told: dict[str, Any] | None) -> str | None:
    return PREFIX + json.dumps(told) if told and told["halted"] else None


class Vllm:
    """Answers what it was given: `answers` are (text, told, rest of the choice); keeps what it was asked."""

    def __init__(self, **settings: Any) -> None:
        self.reports, self.bodies, self.headers = Reports(), [], []
        self.answers: list[tuple[str, dict[str, Any] | None, dict[str, Any]]] = [("hello there", CLEAR, {})]
        self.cut, self.left_out = 7, False
        self.respond: Callable[[str], Response] | None = None
        self.app = Starlette(
            routes=[
                Route(CHAT, self.answer, methods=["POST"]),
                Route(TEXT, self.answer, methods=["POST"]),
                WebSocketRoute("/v1/realtime", lambda _: None),
                *(Route(path, lambda _: JSONResponse({"ok": True}), methods=["GET", "POST"]) for path in (
                    "/health", "/v1/models", "/tokenize", "/v1/responses", "/v1/messages", "/inference/v1/generate",
                    "/invocations", "/pooling", "/v1/chat/completions/batch", "/collective_rpc", "/docs",
                )),
            ]
        )  # fmt: skip
        settings = {"guard": {"refusal": REFUSAL}, **settings}
        self.app.state.vllm_config = SimpleNamespace(additional_config={"anydepth": {"settings": settings}})
        self.app.add_middleware(GuardFront, reports=self.reports)
        self.client = TestClient(self.app, raise_server_exceptions=False)

    def post(self, body: dict[str, Any], path: str = CHAT, **headers: str) -> httpx.Response:
        return self.client.post(path, json=body, headers=headers)

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(request.headers)
        chat = request.url.path == CHAT
        name = ("chatcmpl-" if chat else "cmpl-") + request.headers["x-request-id"]
        n = body.get("n", 1)
        for index, (_, told, _) in enumerate(self.answers):
            if told is not None:
                self.reports.note(name if chat else f"{name}-{index // n}", index % n, told)
        if self.respond is not None:
            return self.respond(name)
        if not body.get("stream"):
            return JSONResponse(self.whole(name, chat=chat))
        return StreamingResponse(self.parts(name, body, chat=chat), media_type="text/event-stream")

    def whole(self, name: str, *, chat: bool) -> dict[str, Any]:
        choices = []
        for index, (text, told, rest) in enumerate(self.answers):
            said = {"message": {"role": "assistant", "content": text, **rest.get("message", {})}} if chat else {
                "text": text}  # fmt: skip
            end = {"finish_reason": "stop", "stop_reason": reason(told)} | rest.get("end", {})
            choices.append({"index": index, **said, "logprobs": None, **end})
        usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
        told = {"kv_transfer_params": {"anydepth": self.answers[-1][1]}}
        return {"id": name, "object": "x", "created": 1, "model": "m", "choices": choices, "usage": usage, **told}

    async def parts(self, name: str, body: dict[str, Any], *, chat: bool):
        raw = b"".join(self.events(name, body, chat=chat))
        for start in range(0, len(raw), self.cut):
            yield raw[start : start + self.cut]

    def events(self, name: str, body: dict[str, Any], *, chat: bool):
        head = {
            "id": name,
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": 1,
            "model": "m",
        }

        def chunk(index: int, said: dict[str, Any], **rest: Any) -> bytes:
            choice = {"index": index, **({"delta": said} if chat else {"text": said.get("content", "")}), **rest}
            return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n".encode()

        if chat:
            for index in range(len(self.answers)):
                yield chunk(index, {"role": "assistant", "content": ""}, logprobs=None, finish_reason=None)
        yield b": keep-alive\n\n"
        for index, (text, told, rest) in enumerate(self.answers):
            if self.left_out and not text:
                continue
            for word in text.split(" ")[:-1]:
                yield chunk(index, {"content": word + " "}, logprobs=None, finish_reason=None)
            for part in rest.get("calls", ()):
                yield chunk(index, {"tool_calls": [part]}, logprobs=None, finish_reason=None)
            end = {"finish_reason": "stop", "stop_reason": reason(told)} | rest.get("end", {})
            said = {"content": text.split(" ")[-1]} | ({"tool_calls": rest["last"]} if "last" in rest else {})
            yield chunk(index, said, logprobs=None, **end)
        if body.get("stream_options"):
            usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
            yield f"data: {json.dumps({**head, 'choices': [], 'usage': usage})}\n\n".encode()
        yield b"data: [DONE]\n\n"


@pytest.fixture
def vllm() -> Vllm:
    return Vllm()


def streamed(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line and not line.startswith(":")]
    assert lines[-1] == "[DONE]" and "[DONE]" not in lines[:-1]
    return [json.loads(line) for line in lines[:-1]]


def choices(records: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    return [each for record in records for each in record["choices"] if each["index"] == index]


def text_of(found: list[dict[str, Any]]) -> str:
    return "".join((each["delta"].get("content") or "") if "delta" in each else each["text"] for each in found)


def test_an_unhalted_answer_is_left_as_it_is(vllm):
    body = vllm.post(ASK).json()
    (choice,) = body["choices"]
    assert choice["message"]["content"] == "hello there" and choice["finish_reason"] == "stop"
    assert set(choice["anydepth"]) == {each.name for each in fields(GuardReport)} - {"timeline", "usage", "stages"}
    assert TypeAdapter(GuardReport).validate_python(choice["anydepth"]).record() == choice["anydepth"]
    assert choice["anydepth"]["halted"] is False and choice["anydepth"]["leak_tokens"] == 0
    assert "kv_transfer_params" not in body and body["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize(("text", "shown"), [("some text", "some text\n\nNo."), ("", "No."), (" \n", " \nNo.")])
def test_a_halted_answer_is_a_success_with_a_refusal(vllm, text, shown):
    vllm.answers = [(text, HALT, {})]
    body = vllm.post(ASK).json()
    (choice,) = body["choices"]
    assert choice["message"]["content"] == shown
    assert choice["finish_reason"] == "content_filter" and choice["stop_reason"] is None
    assert choice["anydepth"]["halted"] and choice["anydepth"]["leak_tokens"] == 2
    assert PREFIX not in json.dumps(body)
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


@pytest.mark.parametrize("cut", [1, 2, 3, 50, 100_000])
def test_a_stream_may_be_cut_anywhere(vllm, cut):
    vllm.cut = cut
    vllm.answers = [("wörds ünd more", CLEAR, {}), ("some bad", HALT, {})]
    records = streamed(vllm.post({**ASK, "n": 2, "stream": True, "stream_options": {"include_usage": True}}))
    assert text_of(choices(records)) == "wörds ünd more"
    assert choices(records)[-1]["finish_reason"] == "stop" and not choices(records)[-1]["anydepth"]["halted"]
    halted = choices(records, 1)
    assert text_of(halted) == "some bad\n\nNo."
    last = halted[-1]
    assert last["finish_reason"] == "content_filter" and last["anydepth"]["halted"]
    assert last["delta"] == {"content": "\n\nNo.", "provider_specific_fields": {"anydepth": last["anydepth"]}}
    assert last["content_filter_results"] == {"anydepth": {"filtered": True, "severity": "high"}}
    assert [each["finish_reason"] for each in halted[:-1]] == [None] * (len(halted) - 1)
    assert records[-1]["usage"]["completion_tokens"] == 7 and PREFIX not in json.dumps(records)


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("usage", [False, True])
def test_an_answer_that_a_stream_leaves_out_is_shown(vllm, path, usage):
    """vLLM writes no chunk for an answer that ends before its first token."""
    vllm.answers = [("", HALT | {"released": 0}, {}), ("fine", CLEAR, {})]
    vllm.left_out = True
    body = {"model": "m", "prompt": "x", "messages": [{"role": "user", "content": "x"}], "n": 2, "stream": True}
    records = streamed(vllm.post(body | ({"stream_options": {"include_usage": True}} if usage else {}), path))
    halted = choices(records)
    assert text_of(halted) == REFUSAL and halted[-1]["finish_reason"] == "content_filter"
    assert halted[-1]["anydepth"]["depth"] == 4
    assert text_of(choices(records, 1)) == "fine"
    assert {record["id"] for record in records} == {records[0]["id"]}
    if usage:
        assert records[-1]["usage"]["completion_tokens"] == 7


@pytest.mark.parametrize("stream", [False, True])
def test_plain_completions_of_several_prompts(vllm, stream):
    vllm.answers = [("a b", CLEAR, {}), ("c d", HALT, {}), ("", HALT, {}), ("e", CLEAR, {})]
    response = vllm.post({"model": "m", "prompt": ["x", "y"], "n": 2, "stream": stream}, TEXT)
    if stream:
        records = streamed(response)
        texts = [text_of(choices(records, index)) for index in range(4)]
        ends = [choices(records, index)[-1]["finish_reason"] for index in range(4)]
    else:
        texts = [each["text"] for each in response.json()["choices"]]
        ends = [each["finish_reason"] for each in response.json()["choices"]]
    assert texts == ["a b", "c d\n\nNo.", "No.", "e"]
    assert ends == ["stop", "content_filter", "content_filter", "stop"]


@pytest.mark.parametrize("prompt", ["text", [1, 2, 3], ["text"], [[1, 2]]])
def test_one_prompt_in_every_form(vllm, prompt):
    assert text_of(choices(streamed(vllm.post({"prompt": prompt, "stream": True}, TEXT)))) == "hello there"


# -- tool calls --------------------------------------------------------------------------------------------------------

PARTS = [
    {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}},
    {"index": 0, "function": {"arguments": '{"city": '}},
    {"index": 0, "function": {"arguments": '"Ulm"}'}},
    {"index": 1, "id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
]


@pytest.mark.parametrize("finish", ["stop", "tool_calls"])
def test_a_halted_answer_has_no_calls(vllm, finish):
    vllm.answers = [("Let me look.", HALT, {"message": {"tool_calls": [CALL]}, "end": {"finish_reason": finish}})]
    (choice,) = vllm.post(ASK).json()["choices"]
    assert "tool_calls" not in choice["message"] and choice["finish_reason"] == "content_filter"
    vllm.answers = [("Let me look.", HALT, {"calls": PARTS[:2], "end": {"finish_reason": finish}})]
    found = choices(streamed(vllm.post({**ASK, "stream": True})))
    assert not any(each["delta"].get("tool_calls") for each in found) and "Ulm" not in str(found)
    assert text_of(found) == "Let me look.\n\nNo." and found[-1]["finish_reason"] == "content_filter"


def test_calls_leave_as_a_whole_once_their_answer_has_ended(vllm):
    vllm.answers = [("Let me look.", CLEAR, {"calls": PARTS, "end": {"finish_reason": "tool_calls"}})]
    found = choices(streamed(vllm.post({**ASK, "stream": True})))
    calls = [each["delta"]["tool_calls"] for each in found if each["delta"].get("tool_calls")]
    assert calls == [[{"index": 0, **CALL}, PARTS[3]]]
    assert found[-2]["delta"]["tool_calls"] and found[-1]["finish_reason"] == "tool_calls"
    assert text_of(found) == "Let me look."


def cut(vllm: Vllm, calls: list[Any], stream: bool, **end: Any) -> tuple[list[str], str, str]:
    """Arguments of the calls that left, text and finish_reason of an answer that was cut."""
    whole = [{key: value for key, value in call.items() if key != "index"} for call in calls]
    vllm.answers = [("x", CLEAR, {"calls": calls, "message": {"tool_calls": whole}, "end": end})]
    response = vllm.post({**ASK, "stream": stream, "stop": "END"})
    if not stream:
        choice = response.json()["choices"][0]
        left, text = choice["message"]["tool_calls"], choice["message"]["content"]
        return [call["function"]["arguments"] for call in left], text, choice["finish_reason"]
    found = choices(streamed(response))
    left = [call for each in found for call in each["delta"].get("tool_calls") or ()]
    assert [call["index"] for call in left] == list(range(len(left)))
    return [call["function"]["arguments"] for call in left], text_of(found), found[-1]["finish_reason"]


def call(arguments: str, index: int = 0) -> dict[str, Any]:
    return {"index": index, "id": "c", "type": "function", "function": {"name": "book", "arguments": arguments}}


@pytest.mark.parametrize("stream", [False, True])
def test_half_a_call_is_text(vllm, stream):
    """Agents would run it: `guests` may be the 1 of 12."""
    half = call('{"city": "Ulm", "guests": 1', 1)
    written = '{"name": "book", "arguments": {"city": "Ulm", "guests": 1'
    left, text, finish = cut(vllm, [call('{"city": "Ulm"}'), half], stream, finish_reason="length")
    assert left == ['{"city": "Ulm"}'] and text.endswith(written) and finish == "length"
    left, text, finish = cut(vllm, [half], stream, finish_reason="tool_calls", stop_reason="END")
    assert left == [] and text.endswith(written) and finish == "stop"
    assert cut(vllm, [call("")], stream, finish_reason="length")[0] == []
    assert cut(vllm, [call("")], stream, finish_reason="tool_calls")[0] == ["{}"]


def test_a_call_that_vllm_completes_in_the_last_chunk_of_a_cut_answer_is_text(vllm):
    """Its parsers close half JSON there: it looks whole and is not."""
    parts = [call('{"guests": 1'), {"index": 0, "function": {"arguments": "}"}}]
    assert cut(vllm, parts, True, finish_reason="length")[0] == ['{"guests": 1}']  # it was whole before the end
    vllm.answers = [("x", CLEAR, {"calls": parts[:1], "last": parts[1:], "end": {"finish_reason": "length"}})]
    found = choices(streamed(vllm.post({**ASK, "stream": True})))
    assert not any(each["delta"].get("tool_calls") for each in found)
    assert text_of(found) == 'x{"name": "book", "arguments": {"guests": 1}' and found[-1]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_only_watched_keeps_its_calls(stream):
    """`monitor` halts nothing, whatever its checks say and where they fail."""
    vllm = Vllm(guard={"refusal": REFUSAL, "release": "monitor"})
    rest = {"calls": PARTS, "message": {"tool_calls": [CALL]}, "end": {"finish_reason": "tool_calls"}}
    for told in ({"failed_checks": 1}, {"reason": "policy", "would_halt": True}):
        vllm.answers = [("x", CLEAR | {"release": "monitor"} | told, rest)]
        response = vllm.post({**ASK, "stream": stream})
        end = choices(streamed(response))[-1] if stream else response.json()["choices"][0]
        assert end["finish_reason"] == "tool_calls" and '"weather"' in response.text
    vllm.answers = [("x", None, rest | {"end": {"finish_reason": "tool_calls", "stop_reason": "END"}})]
    assert '"weather"' in vllm.post({**ASK, "stream": stream, "stop": "END"}).text


@pytest.mark.parametrize("stream", [False, True])
def test_calls_do_not_leave_where_a_check_failed_open(vllm, stream):
    rest = {"calls": PARTS, "message": {"tool_calls": [CALL]}, "end": {"finish_reason": "tool_calls"}}
    vllm.answers = [("x", CLEAR | {"failed_checks": 1}, rest)]
    response = vllm.post({**ASK, "stream": stream})
    end = choices(streamed(response))[-1] if stream else response.json()["choices"][0]
    assert end["finish_reason"] == "content_filter" and end["anydepth"]["reason"] == "error"
    assert '"weather"' not in response.text


@pytest.mark.parametrize(("release", "leaves"), [("hold", True), ("eager", False)])
def test_calls_before_a_stop_string_leave_only_where_all_text_was_checked(release, leaves):
    vllm = Vllm(guard={"refusal": REFUSAL, "release": release})
    end = {"finish_reason": "tool_calls", "stop_reason": "END"}
    vllm.answers = [("x", None, {"calls": PARTS, "end": end})]
    response = vllm.post({**ASK, "stream": True, "stop": "END"})
    assert ('"weather"' in response.text) == leaves


# -- what the engine did not account for -------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["END", ["x", "END"]])
def test_a_stop_string_is_the_front_ends_own(vllm, stop):
    """vLLM aborts the request then: the engine tells nothing."""
    vllm.answers = [("hello", None, {"end": {"finish_reason": "stop", "stop_reason": "END"}})]
    (choice,) = vllm.post({**ASK, "stop": stop}).json()["choices"]
    assert choice["finish_reason"] == "stop" and choice["message"]["content"] == "hello"
    assert choice["anydepth"]["halted"] is False and choice["anydepth"]["checks"] is None


@pytest.mark.parametrize(
    "end", [{}, {"finish_reason": "length"}, {"stop_reason": 17}, {"stop_reason": "END"}, {"stop_reason": PREFIX + "{"}]
)
def test_an_answer_without_an_account_is_not_shown(vllm, end):
    rest = {"end": end, "message": {"reasoning": "secret", "tool_calls": [CALL]}}
    vllm.answers = [("secret", None, rest)]
    response = vllm.post({**ASK, "stop": ["other"]})
    (choice,) = response.json()["choices"]
    assert choice["finish_reason"] == "content_filter" and choice["anydepth"]["reason"] == "error"
    assert "secret" not in response.text and "weather" not in response.text
    vllm.answers = [("one secret", None, {"end": end})]
    found = choices(streamed(vllm.post({**ASK, "stream": True})))
    assert found[-1]["finish_reason"] == "content_filter" and "secret" not in text_of(found)


def test_an_engine_without_a_guard_serves_nothing(vllm):
    vllm.app.state.vllm_config.additional_config = {}
    for path in ("/health", CHAT):
        assert vllm.client.post(path, json=ASK).status_code == 503
    assert not vllm.bodies


# -- requests ----------------------------------------------------------------------------------------------------------


def test_the_request_that_vllm_gets(vllm):
    body = {**ASK, "anydepth": {"interval": 5, "checks": True}, "vllm_xargs": {"anydepth": '{"guard": false}', "a": 1}}
    assert vllm.post(body, **{"X-Request-Id": "mine", "Accept-Encoding": "gzip"}).status_code == 200
    (sent,) = vllm.bodies
    assert "anydepth" not in sent and sent["vllm_xargs"]["a"] == 1
    assert json.loads(sent["vllm_xargs"]["anydepth"]) == {"interval": 5, "checks": True}
    assert sent["max_tokens"] == 512, "the default of [limits]"
    assert vllm.headers[0]["x-request-id"] != "mine" and "accept-encoding" not in vllm.headers[0]
    vllm.post({**ASK, "vllm_xargs": {"anydepth": '{"guard": false}'}, "max_completion_tokens": 7})
    assert "vllm_xargs" not in vllm.bodies[1] and "max_tokens" not in vllm.bodies[1]


def test_prefill_fields_are_vllms_own(vllm):
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    vllm.post({**ASK, **fields})
    assert fields.items() <= vllm.bodies[0].items()


def test_every_check_is_told_where_the_engine_tells_it(vllm):
    vllm.answers = [("x", CLEAR | {"timeline": [{"depth": 0, "score": 0.1, "statistic": 0.1}]}, {})]
    assert vllm.post(ASK).json()["choices"][0]["anydepth"]["timeline"][0]["depth"] == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_what_the_engine_refuses_is_a_bad_request(vllm, path, stream):
    vllm.answers = [("", REFUSED, {})]
    vllm.left_out = True
    response = vllm.post({**ASK, "prompt": "x", "stream": stream}, path)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "anydepth.interval" and "500" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"anydepth": {"enabled": False}}, "anydepth.enabled"),
        ({"anydepth": {"release": "off"}}, "anydepth.release"),
        ({"anydepth": "off"}, "anydepth"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"kv_transfer_params": {"do_remote_prefill": True}}, "kv_transfer_params"),
        ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"n": 9}, "n"),
        ({"n": 0}, "n"),
        ({"n": "2"}, "n"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"max_completion_tokens": 5000, "max_tokens": 1}, "max_completion_tokens"),
        ({"max_tokens": "5000"}, "max_tokens"),
        ({"messages": ASK["messages"] * 300}, "messages"),
        ({"vllm_xargs": "x"}, "vllm_xargs"),
    ],
)
def test_a_bad_field_is_named(vllm, change, param):
    response = vllm.post({**ASK, **change})
    assert response.status_code == 400 and response.json()["error"]["param"] == param
    assert not vllm.bodies, "vLLM has seen it"


@pytest.mark.parametrize(
    "raw", [b"", b"no", b"[1]", b"\xff", b'{"a": NaN}', b'{"a": "\\ud800"}', b'{"a":' * 5000 + b"1" + b"}" * 5000]
)
def test_a_body_that_is_no_request(vllm, raw):
    response = vllm.client.post(CHAT, content=raw, headers={"content-type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["message"]


def test_a_body_that_is_too_large():
    vllm = Vllm(limits={"body_bytes": 100})
    assert vllm.client.post(CHAT, content=b"x" * 101).status_code == 413
    assert vllm.client.post(CHAT, content=iter([b"x" * 60] * 2)).status_code == 413


# -- errors and paths --------------------------------------------------------------------------------------------------


def test_errors_of_vllm_are_its_own(vllm):
    error = {"error": {"message": "no such model", "type": "NotFoundError", "param": "model", "code": 404}}
    vllm.answers = []
    vllm.respond = lambda _: JSONResponse(error, 404)
    response = vllm.post(ASK)
    assert response.status_code == 404 and response.json() == error


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_halted_answer_that_vllm_failed_to_put_together(vllm, path):
    """A cut tool call can be too much for a parser of vLLM's."""
    vllm.respond = lambda _: JSONResponse({"error": {"message": "cannot parse"}}, 500)
    vllm.answers = [("", HALT, {}), ("", HALT, {})]
    body = vllm.post({**ASK, "prompt": "x", "n": 2}, path).json()
    texts = [each["message"]["content"] if path == CHAT else each["text"] for each in body["choices"]]
    assert texts == [REFUSAL] * 2 and {each["finish_reason"] for each in body["choices"]} == {"content_filter"}
    vllm.answers = [("", HALT, {}), ("", CLEAR, {})]
    assert vllm.post({**ASK, "prompt": "x", "n": 2}, path).status_code == 500


def test_calls_do_not_leave_where_the_stream_breaks(vllm):
    """The engine has ended the answer unhalted; vLLM's front end failed over its last part."""
    vllm.answers = [("x", CLEAR, {})]

    def respond(name: str) -> Response:
        head = {"id": name, "object": "chat.completion.chunk", "created": 1, "model": "m"}
        choice = {"index": 0, "delta": {"tool_calls": [PARTS[3] | {"index": 0}]}, "finish_reason": None}
        records = [{**head, "choices": [choice]}, {"error": {"message": "it failed"}}]
        raw = "".join(f"data: {json.dumps(record)}\n\n" for record in records) + "data: [DONE]\n\n"
        return Response(raw, media_type="text/event-stream")

    vllm.respond = respond
    records = streamed(vllm.post({**ASK, "stream": True}))
    assert records == [{"error": {"message": "it failed"}}]


def test_an_error_in_a_stream_is_passed_on(vllm):
    def respond(name: str) -> Response:
        raw = b'data: {"error": {"message": "it failed"}}\n\ndata: [DONE]\n\n'
        return StreamingResponse(iter([raw]), media_type="text/event-stream")

    vllm.respond, vllm.answers = respond, [("", None, {}), ("", HALT, {})]
    records = streamed(vllm.post({**ASK, "n": 2, "stream": True}))
    assert records[0] == {"error": {"message": "it failed"}}
    assert [each["finish_reason"] for each in choices(records[1:], 1)] == ["content_filter"]
    assert not choices(records[1:], 0)


def test_an_answer_of_an_unknown_kind_is_not_shown(vllm):
    vllm.respond = lambda _: Response("secret", media_type="text/plain")
    response = vllm.post(ASK)
    assert response.status_code == 500 and "secret" not in response.text


@pytest.mark.parametrize(
    "path",
    [
        "/v1/responses", "/v1/messages", "/inference/v1/generate", "/invocations", "/pooling", "/collective_rpc",
        "/v1/chat/completions/batch", "/v1/chat/completions/", "/docs", "/nothing",
    ],
)  # fmt: skip
def test_what_cannot_show_a_halt_is_not_there(vllm, path):
    for method in ("GET", "POST"):
        response = vllm.client.request(method, path)
        assert response.status_code == 404 and CHAT in response.json()["error"]["message"]


def test_what_generates_nothing_is_passed(vllm):
    for path in ("/health", "/v1/models", "/tokenize"):
        assert vllm.client.post(path).json() == {"ok": True}
    assert vllm.client.get(CHAT).status_code == 405


def test_pages_of_other_origins():
    vllm = Vllm(http={"cors_origins": ["https://a.example"]})
    ask = {"Access-Control-Request-Method": "POST"}
    for origin, status in (("https://a.example", 200), ("https://b.example", 403)):
        assert vllm.client.options(CHAT, headers={"Origin": origin, **ask}).status_code == status
        allowed = vllm.post(ASK, Origin=origin).headers.get("access-control-allow-origin")
        assert allowed == (origin if status == 200 else None)


def test_a_body_has_to_say_that_it_is_json(vllm):
    response = vllm.client.post(CHAT, content=json.dumps(ASK), headers={"content-type": "text/plain"})
    assert response.status_code == 415 and "Content-Type is 'text/plain'" in response.json()["error"]["message"]
    assert not vllm.bodies


def test_websockets_are_closed(vllm):
    with pytest.raises(WebSocketDisconnect), vllm.client.websocket_connect("/v1/realtime"):
        pass


def test_api_keys(monkeypatch):
    monkeypatch.setenv("ANYDEPTH_API_KEY", "secret")
    vllm = Vllm()
    for headers, status in (
        ({}, 401),
        ({"Authorization": "Bearer no"}, 401),
        ({"Authorization": "Bearer secret"}, 200),
    ):
        assert vllm.post(ASK, **headers).status_code == status
    assert vllm.client.get("/health").status_code == 200 and vllm.client.get("/v1/models").status_code == 401


def test_reports_are_forgotten(vllm):
    vllm.post(ASK)
    vllm.post({**ASK, "stream": True})
    assert not vllm.reports.responses
    vllm.reports.note("chatcmpl-" + "0" * 32, 0, CLEAR)
    vllm.reports.note("resp_1", 0, CLEAR)
    assert not vllm.reports.responses


# -- the command -------------------------------------------------------------------------------------------------------


def settings_of(**tables: Any) -> Any:
    return parse_settings({"model": {"path": "org/model", "name": "m"}, **tables})


def test_the_command(monkeypatch):
    monkeypatch.setattr("anydepth.vllm.launch.find_spec", lambda _: object())
    command = server_command(settings_of(guard={"interval": 10}), ["--max-model-len", "512", "--host", "0.0.0.0"])
    assert command[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    pairs = dict(pairwise(command))
    assert pairs["--model"] == "org/model" and pairs["--served-model-name"] == "m" and pairs["--middleware"] == FRONT
    assert pairs["--host"] == "0.0.0.0" and "--dtype" not in command
    assert json.loads(pairs["--additional-config"])["anydepth"]["settings"]["guard"] == {"interval": 10}
    assert command.index("--max-model-len") < command.index("--scheduler-cls"), "the last one of a flag counts"
    assert "--default-chat-template-kwargs" not in command


def test_variables_of_the_template_go_to_vllm_and_to_the_guard(monkeypatch):
    monkeypatch.setattr("anydepth.vllm.launch.find_spec", lambda _: object())
    pairs = dict(pairwise(server_command(settings_of(model={"path": "x", "template_kwargs": {"thinking": False}}))))
    assert json.loads(pairs["--default-chat-template-kwargs"]) == {"thinking": False}
    ours = json.loads(pairs["--additional-config"])["anydepth"]["settings"]["model"]
    assert ours["template_kwargs"] == {"thinking": False}


@pytest.mark.parametrize("flag", ["--worker-cls", "--scheduler_cls=x", "--additional-config.anydepth.x", "--model=x"])
def test_flags_that_are_the_guards_own(flag):
    with pytest.raises(ConfigError, match="guard's own"):
        server_command(settings_of(), [flag])


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ({"model": {"path": "x", "adapter": "a"}}, r"\[model\] adapter"),
        ({"model": {"path": "x", "device": "cpu"}}, r"\[model\] device"),
        ({"model": {"path": "x", "dtype": "fast"}}, r"\[model\] dtype fast"),
        ({"tools": {"format": "hermes"}}, r"\[tools\] format"),
        ({"tools": {"gate": True}}, r"\[tools\] gate does not apply"),
        ({"tools": {"keep": False}}, r"\[tools\] keep = false does not apply"),
        ({"reasoning": {"release": "hidden"}}, r"\[reasoning\] release"),
        ({"model": {}, "upstream": {"url": "http://x/v1"}}, r"\[upstream\] url .* `anydepth proxy` is for it"),
    ],
)
def test_settings_that_do_not_apply_are_named(table, name):
    with pytest.raises(ConfigError, match=name):
        server_command(settings_of(**table))
    with mock.patch.dict(os.environ), pytest.raises(ConfigError, match=name):
        engine_options(settings_of(**table))  # what ANYDEPTH_GUARD and `vllm.LLM` go through


def test_without_vllm_the_install_line_is_told(monkeypatch):
    monkeypatch.setattr("anydepth.vllm.launch.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"pip install 'anydepth\[vllm\]'.*environment of its own"):
        server_command(settings_of())


@pytest.fixture
def executed(monkeypatch) -> list[list[str]]:
    """Commands that this process would have become."""
    commands: list[list[str]] = []

    def execve(path: str, command: list[str], environment: dict[str, str]) -> None:
        assert path == command[0] and environment["VLLM_USE_V2_MODEL_RUNNER"] == "0"
        commands.append(command)
        raise SystemExit(0)

    monkeypatch.setattr("anydepth.vllm.launch.find_spec", lambda _: object())
    monkeypatch.setattr("os.execve", execve)
    return commands


@pytest.mark.parametrize("model", [["org/other"], []])
def test_the_command_line(executed, tmp_path, model):
    config = tmp_path / "guard.toml"
    policy = 'policy = {name = "ewma", alpha = 0.5, threshold = 0.7}'
    config.write_text(f'[model]\npath = "org/model"\ntemplate_kwargs = {{a = 1, b = 2}}\n[guard]\n{policy}\n')
    options = ["--engine", "vllm", "--config", str(config), "--threshold", "0.4", "--dtype", "float32", "--port", "0"]
    options += ["--template-kwarg", "thinking=false", "--template-kwarg", "b=3"]
    result = CliRunner().invoke(app, ["serve", *options, *model, "--", "--max-num-seqs", "4"])
    assert result.exit_code == 0, result.output
    (command,) = executed
    pairs = dict(pairwise(command))
    assert pairs["--model"] == (model or ["org/model"])[0] and pairs["--max-num-seqs"] == "4"
    assert pairs["--dtype"] == "float32"
    assert json.loads(pairs["--default-chat-template-kwargs"]) == {"a": 1, "b": 3, "thinking": False}
    guard = json.loads(pairs["--additional-config"])["anydepth"]["settings"]["guard"]
    assert guard["policy"] == {"name": "ewma", "alpha": 0.5, "threshold": 0.4}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--engine", "vllm", "--device", "cuda:0"], "--device cuda:0"),
        (["--engine", "vllm", "--adapter", "a"], "--adapter a"),
        (["--engine", "vllm", "--threshold", "0.4"], "--threshold 0.4"),
        (["--", "--max-num-seqs", "4"], "--max-num-seqs"),
    ],
)
def test_options_that_do_not_apply_are_named(executed, options, named):
    result = CliRunner().invoke(app, ["serve", "org/model", *options])
    assert result.exit_code != 0 and not executed
    assert named in " ".join(result.stderr.split()) if result.stderr else named in str(result.exception)


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_stages_of_a_cascade_did_is_counted_and_not_shown(stream):
    prices = {"prompt": 10_000.0, "completion": 0.0}
    external = {"url": "http://localhost:1/v1", "model": "g", "prices": prices}
    vllm = Vllm(guard={"refusal": REFUSAL, "detector": "cascade"}, external=external)
    none = {
        "seconds": 0.0, "look_ahead_tokens": 0, "requests": 0, "requests_without_usage": 0, "prompt_tokens": 0,
        "completion_tokens": 0,
    }  # fmt: skip
    sums = {
        "probe": none | {"checks": 9, "decided": 5},
        "rethink": none | {"checks": 4, "decided": 1, "look_ahead_tokens": 30, "seconds": 0.5},
        "external": none | {"checks": 2, "decided": 2, "requests": 2, "prompt_tokens": 200, "completion_tokens": 4},
    }
    vllm.answers = [("hello there", CLEAR | {"stage_sums": sums}, {}), ("", HALT | {"stage_sums": sums}, {})]
    before = stage_samples()
    reply = vllm.post({**ASK, "n": 2, "stream": stream})
    after = stage_samples()
    assert reply.status_code == 200 and "stage_sums" not in reply.text
    found = {name: after[name] - before.get(name, 0) for name in after}
    assert {name: count for name, count in found.items() if count} == {
        ("checks", "probe", "decided"): 10, ("checks", "probe", "passed_on"): 8,
        ("checks", "rethink", "decided"): 2, ("checks", "rethink", "passed_on"): 4, ("checks", "rethink", "failed"): 2,
        ("checks", "external", "decided"): 4,
        ("seconds", "rethink"): 1.0, ("tokens", "rethink", "look_ahead"): 60,
        ("tokens", "external", "prompt"): 400, ("tokens", "external", "completion"): 8,
        ("requests", "external"): 4, ("cost", "external"): 4.0,
    }  # fmt: skip


def stage_samples() -> dict[tuple[str, ...], float]:
    """What vLLM's `/metrics` shows of stages, by the metric's name and labels."""
    lines = [each for each in generate_latest(REGISTRY).decode().splitlines() if each.startswith("anydepth_stage_")]
    found = {}
    for line in lines:
        name, labels, value = re.fullmatch(r"anydepth_stage_(\w+)_total\{(.*)\} (.*)", line).groups()  # type: ignore[union-attr]
        parts = dict(re.findall(r'(\w+)="(\w+)"', labels))
        stage = parts.pop("stage")
        found[name, stage, *parts.values()] = float(value)
    return found
