"""What clients get when something is wrong with a request."""

import json
from typing import Any

import httpx
import openai
import pytest

from tests.server.process import ServerProcess

GOOD = {"model": "scripted", "messages": [{"role": "user", "content": "say: hello"}]}


USER = {"role": "user", "content": "x"}
ARGUMENTS = "messages[1].tool_calls[0].function.arguments"


def called(arguments: Any) -> list[Any]:
    """A conversation with a tool call in it."""
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "y"},
        {"role": "user", "content": "say: hello"},
    ]


def parts(*each: Any) -> list[Any]:
    return [USER, {"role": "user", "content": list(each)}]


def refused(server: ServerProcess, path: str, body: Any) -> dict[str, Any]:
    response = httpx.post(server.url + path, json=body, timeout=20)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"model": 5}, "model", "model is 5; send a text"),
        ({"model": None}, "model", "model is null; send a text"),
        ({"stream": "maybe"}, "stream", 'stream is "maybe"; send true or false'),
        ({"stream_options": {"include_usage": True}}, "stream_options", "set stream, or leave it out"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "is not offered by this server; leave it"),
        ({"stream_options": "x"}, "stream_options", 'stream_options is "x"; send an object'),
        ({"n": 0}, "n", "n is 0; send at least 1"),
        ({"n": 5}, "n", "5 answers are asked for by n; this server allows 4 at most"),
        ({"n": 1.5}, "n", "n is 1.5; send a whole number"),
        ({"max_tokens": 100_000}, "max_tokens", "max_tokens is 100000; this server allows 1000 at most"),
        ({"max_completion_tokens": 100_000}, "max_completion_tokens", "max_completion_tokens is 100000; this server"),
        ({"temperature": 10**90}, "temperature", "temperature is a number of 91 digits; send at most 2"),
        ({"max_completion_tokens": 0, "max_tokens": 5}, "max_completion_tokens", "is 0; send at least 1"),
        ({"temperature": 3}, "temperature", "temperature is 3; send at most 2"),
        ({"temperature": "hot"}, "temperature", 'temperature is "hot"; send a number'),
        ({"top_p": -1}, "top_p", "top_p is -1; send at least 0"),
        ({"top_k": -2}, "top_k", "top_k is -2; send at least -1"),
        ({"min_p": []}, "min_p", "min_p is a list of 0; send a number"),
        ({"repetition_penalty": 0}, "repetition_penalty", "send at least 0.1"),
        ({"seed": 2**70}, "seed", f"seed is {2**70}; send less than {2**63}"),
        ({"seed": "x"}, "seed", 'seed is "x"; send a whole number'),
        ({"stop": ["a"] * 5}, "stop", "stop has 5 entries; send 4 at most"),
        ({"stop": ""}, "stop", "stop is empty; send at least one character"),
        ({"stop": 5}, "stop", "stop is 5; send a text, or a list of texts"),
        ({"stop": ["a", 1]}, "stop[1]", "stop[1] is 1; send a text"),
        ({"stop": ["a", "x" * 300]}, "stop[1]", "stop[1] has 300 characters; send 256 at most"),
        ({"anydepth": "x"}, "anydepth", 'anydepth is "x"; send an object'),
        ({"anydepth": {"interval": 0}}, "anydepth.interval", "anydepth.interval is 0; send at least 1"),
        ({"anydepth": {"release": "off"}}, "anydepth.release", "choose 'hold', 'eager' or 'monitor'"),
        ({"messages": "hi"}, "messages", 'messages is "hi"; send a list'),
        ({"messages": []}, "messages", "messages is empty; send at least one entry"),
        ({"messages": [5]}, "messages[0]", "messages[0] is 5; send an object"),
        ({"messages": [USER] * 30}, "messages", "messages has 30 entries; this server takes 20 at most"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "messages[0].role is missing; send it"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content", 'is missing (role "user"); give it a text'),
        ({"messages": [USER, {"role": "user", "content": 5}]}, "messages[1].content", "is 5; send a text, or a list"),
        ({"messages": parts(5)}, "messages[1].content[0]", "messages[1].content[0] is 5; send an object"),
        ({"messages": parts({"type": "image_url"})}, "messages[1].content[0].type", "only 'text' is offered here"),
        ({"messages": parts({"type": "text"})}, "messages[1].content[0].text", "is missing; send it"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "put a user message before it"),
        ({"messages": called("")[:2]}, "messages", "append the tool's result"),
        ({"messages": called("{")}, ARGUMENTS, 'is "{", which is not JSON; send the JSON text of an object'),
        ({"messages": called("[1]")}, ARGUMENTS, 'is "[1]"; send the JSON text of an object'),
        ({"messages": called("x" * 50)}, ARGUMENTS, "is a text of 50 characters, which is not JSON"),
        ({"messages": called({"a": 1})}, ARGUMENTS, "is an object; send a text"),
        ({"continue_final_message": True}, "continue_final_message", "there is no last message of the assistant"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "tools[0].function is missing"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type", "tools[0].type is \"custom\"; only 'function' is offered"),
        ({"tool_choice": "any"}, "tool_choice", "tool_choice is \"any\"; choose 'auto', 'none' or 'required'"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools; send tools, or choose 'auto'"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function", "tool_choice.function is missing; send it"),
        ({"logprobs": True}, "logprobs", "logprobs is not offered by this server; leave it out"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "leave it out"),
        ({"presence_penalty": 0.5}, "presence_penalty", "leave it out"),
        ({"response_format": {"type": "json_object"}}, "response_format", "leave it out"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "leave it out"),
        ({"no_such_field": 1}, "no_such_field", "leave it out"),
        ({"X-No Field": 1}, "X-No Field", "X-No Field is not offered by this server"),
        ({"<text>": 1}, "<text>", "<text> is not offered by this server"),
        ({"y" * 500: 1}, "y" * 40, "is not offered by this server"),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_what_to_send(server, changes, param, words):
    error = refused(server, "/v1/chat/completions", {**GOOD, **changes})
    assert error["param"] == param and words in error["message"], error


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("completions", {}, "prompt", "prompt is missing; send it"),
        ("completions", {"prompt": " "}, "prompt", "prompt is an empty text"),
        ("completions", {"prompt": ["a", ""]}, "prompt[1]", "prompt[1] is an empty text"),
        ("completions", {"prompt": [1, 2]}, "prompt[0]", "prompt[0] is 1; send a text"),
        ("completions", {"prompt": None}, "prompt", "prompt is null; send a text, or a list of texts"),
        ("completions", {"prompt": ["a"] * 5}, "prompt", "5 answers are asked for by prompt; this server allows 4"),
        ("completions", {"prompt": ["a"] * 2, "n": 3}, "n", "6 answers are asked for by n; this server allows 4"),
        ("moderations", {}, "input", "input is missing; send it"),
        ("moderations", {"input": 5}, "input", "input is 5; send a text, a list of texts, or a list of messages"),
        ("moderations", {"input": ""}, "input", "the prompt is empty"),
        ("moderations", {"input": ["a", ""]}, "input[1]", "input[1] is an empty text"),
        ("moderations", {"input": [[]]}, "input[0]", "input[0] is a list of 0; send a text, a message"),
        ("moderations", {"input": [{"role": "user"}]}, "input[0].content", "input[0].content is missing"),
        ("moderations", {"input": [{"type": "image_url"}]}, "input[0].type", "only 'text' is offered here"),
        ("moderations", {"input": ["a"] * 30}, "input", "input has 30 entries; this server takes 20"),
        ("moderations", {"input": [USER, "y"]}, "input", "send one conversation, or a list of texts"),
    ],
)
def test_the_other_endpoints_name_their_fields_too(server, path, body, param, words):
    error = refused(server, f"/v1/{path}", {"model": "scripted", **body})
    assert error["param"] == param and words in error["message"], error


@pytest.mark.parametrize("arguments", ["", " ", "{}", "null"])
def test_a_past_call_without_arguments(server, arguments):
    """OpenAI's clients send an empty text for it."""
    body = {"model": "scripted", "messages": called(arguments)}
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert response.status_code == 200 and response.json()["choices"][0]["message"]["content"] == "hello"


def test_neutral_values_of_what_is_not_offered_are_fine(client):
    client.chat.completions.create(
        **GOOD, presence_penalty=0, frequency_penalty=0, logit_bias={}, logprobs=False, service_tier="auto",
        response_format={"type": "text"}, parallel_tool_calls=True, store=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is empty; send a JSON object"),
        (b"not json", "the body is not JSON: Expecting value at line 1, column 1; send a JSON object"),
        (b'{"a": 1,\n "b" 2}', "the body is not JSON: Expecting ':' delimiter at line 2, column 6"),
        (b"[1, 2]", "the body is a list of 2; send an object"),
        (b'"text"', 'the body is "text"; send an object'),
        (b'{"a": "\xff"}', "the body is not UTF-8: byte 7 is no part of a character"),
        (
            b'{"model": "scripted", "messages": [{"role": "user", "content": "\\ud800"}]}',
            "half of a surrogate pair in it; send whole characters",
        ),
        (
            b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", '
            b'"function": {"name": "f", "description": "\\udfff"}}]}',
            "half of a surrogate pair in it; send whole characters",
        ),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "the body is nested too deeply; send a flatter object"),
        (b'{"n": ' + b"1" * 5000 + b"}", "the body is not JSON: Exceeds the limit (4300 digits)"),
    ],
)
def test_a_body_that_is_no_request(server, body, words):
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert words in error["message"] and error["param"] is None


def test_a_number_that_is_none(server):
    body = b'{"model": "scripted", "temperature": NaN, "messages": [{"role": "user", "content": "x"}]}'
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "temperature is NaN; send a finite number"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/moderations"])
@pytest.mark.parametrize(("kind", "named"), [(None, "is missing"), ("text/plain", "is 'text/plain'")])
def test_a_body_that_does_not_say_that_it_is_json(server, path, kind, named):
    """A page of any origin can have a browser send such a body without asking first."""
    headers = {} if kind is None else {"content-type": kind}
    response = httpx.post(server.url + path, content=json.dumps(GOOD).encode(), headers=headers)
    assert response.status_code == 415
    message = response.json()["error"]["message"]
    assert message == f"the header Content-Type {named}; send `Content-Type: application/json`"


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"])
def test_the_ways_to_say_that_a_body_is_json(server, kind):
    content = json.dumps(GOOD).encode()
    response = httpx.post(f"{server.url}/v1/chat/completions", content=content, headers={"content-type": kind})
    assert response.status_code == 200


def test_a_body_that_is_too_large(server):
    url = f"{server.url}/v1/chat/completions"
    assert httpx.post(url, content=b"x" * 60_000).status_code == 413
    assert httpx.post(url, content=iter([b"x" * 30_000] * 3)).status_code == 413  # no content-length


def test_another_model(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**{**GOOD, "model": "another"})
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_another_path_and_method(server):
    nothing, other = server.get("/chat/completions"), server.get("/v1/chat/completions")
    assert nothing.status_code == 404 and "those of the API begin with /v1" in nothing.json()["error"]["message"]
    assert other.status_code == 405
    assert other.json()["error"]["message"] == "/v1/chat/completions does not take GET; use POST"


def test_api_keys(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# the second client\nsecond\n")
    settings = {"http": {"api_key_file": str(keys)}}
    with ServerProcess.scripted(settings, env={"ANYDEPTH_API_KEY": "first"}) as locked:
        for key in ("first", "second"):
            assert locked.client(key).chat.completions.create(**GOOD).choices
        for key in ("third", "firs", "# the second client"):
            with pytest.raises(openai.AuthenticationError) as caught:
                locked.client(key).chat.completions.create(**GOOD)
            assert caught.value.code == "invalid_api_key"
        assert locked.get("/metrics").status_code == 401
        assert locked.get("/healthz").status_code == 200


# -- pages of other origins --------------------------------------------------------------------------------------------

PAGE, STRANGER = "https://chat.example.org", "https://other.example.org"
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


def preflight(server: ServerProcess, origin: str, **headers: str) -> httpx.Response:
    return httpx.options(f"{server.url}/v1/chat/completions", headers={"Origin": origin, **ASKS, **headers})


def test_pages_that_the_operator_lets_in():
    settings = {"http": {"cors_origins": [PAGE]}}
    with ServerProcess.scripted(settings, env={"ANYDEPTH_API_KEY": "first"}) as server:
        asked = preflight(server, PAGE)  # no API key: browsers send none
        assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == PAGE
        assert asked.headers["access-control-allow-headers"] == ASKS["Access-Control-Request-Headers"]
        assert "POST" in asked.headers["access-control-allow-methods"] and asked.headers["x-request-id"]
        url, key = f"{server.url}/v1/chat/completions", {"Authorization": "Bearer first"}
        for headers, status in ((key, 200), ({}, 401)):  # a page may read errors too
            answer = httpx.post(url, json=GOOD, headers={"Origin": PAGE, **headers})
            assert answer.status_code == status and answer.headers["access-control-allow-origin"] == PAGE
            assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
        streamed = httpx.post(url, json={**GOOD, "stream": True}, headers={"Origin": PAGE, **key})
        assert streamed.headers["access-control-allow-origin"] == PAGE
        assert httpx.options(url).status_code == 401  # no preflight: no origin
        other = preflight(server, STRANGER)
        assert other.status_code == 403 and "access-control-allow-origin" not in other.headers
        assert f"pages of '{STRANGER}' may not use this server" in other.json()["error"]["message"]
        assert "[http] cors_origins" in other.json()["error"]["message"]
        assert "access-control-allow-origin" not in httpx.post(
            url, json=GOOD, headers={"Origin": STRANGER, **key}
        ).headers  # fmt: skip
        assert preflight(server, PAGE, **{"Access-Control-Request-Method": "DELETE"}).status_code == 403


def test_pages_are_kept_out_unless_the_operator_lets_them_in(server):
    asked = preflight(server, PAGE)
    assert asked.status_code == 403 and asked.json()["error"]["code"] == "origin_not_allowed"
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=GOOD, headers={"Origin": PAGE})
    assert answer.status_code == 200 and not [name for name in answer.headers if name.startswith("access-control")]
