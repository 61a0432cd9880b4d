"""The LiteLLM example: a real proxy, an unguarded model behind it, and a guarded server beside it."""

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.server.litellm_proxy import EXAMPLE, KEY, Proxy, litellm_python
from tests.server.process import ServerProcess

pytestmark = [pytest.mark.registry, pytest.mark.slow]

FLAGGED = "anydepth: the conversation was flagged as harmful"
NOWHERE = "http://127.0.0.1:9/v1"  # the discard port: nothing listens
FINE = "fine words " * 80
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]


def another(name: str, **params: Any) -> dict[str, Any]:
    """A guardrail that runs besides the example's own where a request asks for it."""
    where = {"guardrail": "anydepth_guardrail.AnydepthGuardrail", "mode": ["pre_call", "post_call"]}
    return {"guardrail_name": name, "litellm_params": {**where, **params}}


@pytest.fixture(scope="module")
def guard() -> Iterator[ServerProcess]:
    with ServerProcess.scripted({}, env={"ANYDEPTH_API_KEY": "of-the-guard"}) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(guard: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    unguarded = {"guard": {"release": "monitor"}, "tools": {"format": "hermes"}}  # lets everything pass
    with ServerProcess.scripted(unguarded) as model:
        env = {
            "UPSTREAM_MODEL": "hosted_vllm/scripted",  # of LiteLLM's routes, asked by /v1/chat/completions only
            "UPSTREAM_API_BASE": f"{model.url}/v1",
            "UPSTREAM_API_KEY": "none",
            "ANYDEPTH_API_BASE": f"{guard.url}/v1",
            "ANYDEPTH_API_KEY": "of-the-guard",
        }
        more = [
            another("down", api_base=NOWHERE),
            another("down-open", api_base=NOWHERE, unreachable_fallback="fail_open"),
            another("wrong-key", api_key="of-another", unreachable_fallback="fail_open"),
            another("at-end", window_chars=0),
        ]
        own = {"model": "openai/scripted", "api_base": f"{model.url}/v1", "api_key": "none"}
        models = [{"model_name": "own-responses", "litellm_params": own}]  # asked by its own /v1/responses
        running = Proxy(tmp_path_factory.mktemp("litellm"), env, more, models)
        yield running
        running.stop()


@pytest.fixture(scope="module")
def client(proxy: Proxy) -> openai.OpenAI:
    return proxy.client()


def ask(client: openai.OpenAI, text: str, *before: dict[str, Any], **options: Any) -> Any:
    messages = [*before, {"role": "user", "content": text}]
    return client.chat.completions.create(model="assistant", messages=messages, **options)


def read(stream: Any) -> tuple[str, openai.APIError | None]:
    """What a client has seen of a stream when it ended, and the error it ended with."""
    text = ""
    try:
        for chunk in stream:
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    except openai.APIError as error:
        return text, error
    return text, None


def test_what_is_fine_passes(client, guard):
    scans = guard_scans(guard)
    assert ask(client, "say: hello").choices[0].message.content == "hello"
    assert guard_scans(guard) == scans + 2  # the request, and the conversation with its answer


def guard_scans(guard: ServerProcess) -> float:
    headers = {"Authorization": "Bearer of-the-guard"}
    lines = httpx.get(f"{guard.url}/metrics", headers=headers).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("anydepth_scans_total{"))


def test_a_harmful_request_never_reaches_the_model(client):
    with pytest.raises(openai.BadRequestError, match=FLAGGED):
        ask(client, "harm: hello")


def test_a_harmful_answer_is_blocked_and_the_client_is_told_no_score(client, proxy):
    with pytest.raises(openai.BadRequestError, match=FLAGGED) as caught:
        ask(client, "say: a fine beginning, then the harm")
    assert "0.99" not in str(caught.value) and "0.99" in proxy.log


def test_one_harmful_answer_of_several_blocks_all(client):
    assert len(ask(client, "say: hello", n=2).choices) == 2
    with pytest.raises(openai.BadRequestError, match=FLAGGED):
        ask(client, "say: and the harm", n=2)


def test_a_prefill_is_read_with_its_answer(client):
    begun = {"role": "assistant", "content": "First, the harm"}
    messages = [{"role": "user", "content": "say: hello"}, begun]
    with pytest.raises(openai.BadRequestError, match=FLAGGED):
        client.chat.completions.create(model="assistant", messages=messages)


@pytest.mark.parametrize("stream", [False, True])
def test_arguments_of_a_tool_call_are_read(client, stream):
    def call(value: str) -> Any:
        arguments = json.dumps({"name": "look_up", "arguments": {"what": value}})
        return ask(client, f"say: <tool_call>{arguments}</tool_call>", tools=TOOLS, stream=stream)

    fine = call("weather")
    calls = [c.choices[0].delta.tool_calls for c in fine] if stream else [fine.choices[0].message.tool_calls]
    assert any(calls)
    with pytest.raises(openai.APIError, match=FLAGGED):
        list(call("harm"))


def test_an_earlier_tool_call_and_its_result_are_passed_on(client):
    function = {"name": "look_up", "arguments": "{}"}
    called = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": function}],
    }
    result = {"role": "tool", "tool_call_id": "1", "content": "rain"}
    reply = ask(client, "say: hello", {"role": "user", "content": "q"}, called, result)
    assert reply.choices[0].message.content == "hello"


def test_a_stream_leaves_window_by_window(client, guard):
    scans = guard_scans(guard)
    text, error = read(ask(client, f"say: {FINE}", stream=True, max_tokens=2000))
    assert text == FINE and error is None
    assert guard_scans(guard) == scans + 1 + 2 + 1  # the request, each full window of 400 characters, the end


def test_a_stream_ends_before_the_window_with_the_harm(client):
    text, error = read(ask(client, f"say: {FINE}and the harm {FINE}", stream=True, max_tokens=3000))
    assert error is not None and FLAGGED in str(error)
    assert FINE.startswith(text) and 400 <= len(text) <= len(FINE)


def test_a_stream_that_is_scanned_at_its_end_gives_nothing_before(client):
    options = {"stream": True, "max_tokens": 3000, "extra_body": {"guardrails": ["at-end"]}}
    assert read(ask(client, f"say: {FINE}", **options)) == (FINE, None)
    with pytest.raises(openai.BadRequestError, match=FLAGGED):
        read(ask(client, f"say: {FINE}and the harm", **options))


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_passes_while_the_guard_is_down(client, stream):
    with pytest.raises(openai.InternalServerError, match="the guard cannot be reached") as caught:
        ask(client, "say: hello", stream=stream, extra_body={"guardrails": ["down"]})
    assert caught.value.status_code == 503


def test_it_fails_open_where_the_operator_says_so_and_not_for_a_wrong_key(client, proxy):
    assert ask(client, "say: hello", extra_body={"guardrails": ["down-open"]}).choices[0].message.content == "hello"
    assert "let pass (fail_open)" in proxy.log
    with pytest.raises(openai.BadRequestError, match="cannot be scanned"):
        ask(client, "say: hello", extra_body={"guardrails": ["wrong-key"]})


def test_a_client_cannot_switch_it_off(client):
    off = {"guardrails": [], "disable_global_guardrails": True, "metadata": {"disable_global_guardrails": True}}
    with pytest.raises(openai.BadRequestError, match=FLAGGED):
        ask(client, "say: the harm", extra_body=off)


def test_what_is_no_text_is_refused(client):
    picture = [{"type": "text", "text": "say: hello"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    with pytest.raises(openai.BadRequestError, match="only text can be scanned"):
        client.chat.completions.create(model="assistant", messages=[{"role": "user", "content": picture}])


ROUTES = ["messages", "responses", "own-responses"]
FUNCTION = {"name": "look_up", "parameters": {"type": "object", "properties": {}}}
OFFERED = {
    "messages": {"tools": [{"name": "look_up", "input_schema": {"type": "object", "properties": {}}}]},
    "responses": {"tools": [{"type": "function", **FUNCTION}]},
}


def post(proxy: Proxy, route: str, text: str, *, tools: bool = False, **fields: Any) -> tuple[int, str]:
    """Status and body of a request on one of LiteLLM's other routes."""
    path = route.removeprefix("own-")
    said: dict[str, Any] = {"input": text, "max_output_tokens": 3000}
    if path == "messages":
        said = {"messages": [{"role": "user", "content": text}], "max_tokens": 3000}
    body = {"model": "own-responses" if route == "own-responses" else "assistant", **said}
    body |= {**(OFFERED[path] if tools else {}), **fields}
    headers = {"Authorization": f"Bearer {KEY}"}
    response = httpx.post(f"{proxy.url}/v1/{path}", json=body, headers=headers, timeout=60)
    return response.status_code, response.text


def written(body: str) -> str:
    """The text of all deltas of a stream, of either route."""
    text = ""
    for line in body.splitlines():
        event = json.loads(line[6:]) if line.startswith("data: {") else {}
        delta = event.get("delta", "")
        text += delta.get("text", "") if isinstance(delta, dict) else delta
    return text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_other_routes_are_read(proxy, guard, route, stream):
    scans = guard_scans(guard)
    status, body = post(proxy, route, "say: hello", stream=stream)
    assert status == 200 and (written(body) if stream else body).count("hello") == 1, body
    assert guard_scans(guard) == scans + 2
    status, body = post(proxy, route, "say: a fine beginning, then the harm", stream=stream)
    assert FLAGGED in body and "beginning" not in body and "0.99" not in body
    assert stream or status == 400
    status, body = post(proxy, route, "harm: hello", stream=stream)
    assert status == 400 and FLAGGED in body


@pytest.mark.parametrize("route", ROUTES)
def test_streams_of_other_routes_leave_window_by_window(proxy, guard, route):
    scans = guard_scans(guard)
    status, body = post(proxy, route, f"say: {FINE}", stream=True)
    assert status == 200 and written(body) == FINE
    assert guard_scans(guard) == scans + 1 + 2 + 1
    status, body = post(proxy, route, f"say: {FINE}and the harm {FINE}", stream=True)
    assert status == 200 and FLAGGED in body and "the harm" not in body
    assert FINE.startswith(written(body)) and 400 <= len(written(body)) <= len(FINE)
    assert "message_stop" not in body and "response.completed" not in body  # nothing says that it ended well


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_tool_calls_of_other_routes_are_read(proxy, route, stream):
    def call(value: str) -> tuple[int, str]:
        arguments = json.dumps({"name": "look_up", "arguments": {"what": value}})
        return post(proxy, route, f"say: <tool_call>{arguments}</tool_call>", tools=True, stream=stream)

    status, body = call("weather")
    assert status == 200 and "look_up" in body and "weather" in body, body
    status, body = call("harm")
    assert FLAGGED in body and '"what' not in body and "tool_use" not in body and "function_call" not in body


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_no_route_passes_while_the_guard_is_down(proxy, route, stream):
    status, body = post(proxy, route, "say: hello", stream=stream, guardrails=["down"])
    assert status == 503 and "the guard cannot be reached" in body


@pytest.mark.parametrize(
    ("route", "fields", "words"),
    [
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "part is of type image"),
        (
            "responses",
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "part is of type input_image",
        ),
        ("responses", {"previous_response_id": "resp_1"}, "send the whole of it"),
        ("responses", {"background": True}, "send the whole of it"),
    ],
)
def test_what_cannot_be_read_is_refused_on_other_routes(proxy, route, fields, words):
    status, body = post(proxy, route, "say: hello", **fields)
    assert status == 400 and words in body


@pytest.mark.parametrize("stream", [False, True])
def test_plain_completions_are_refused(proxy, stream):
    body = {"model": "assistant", "stream": stream, "prompt": "say: hello"}
    response = httpx.post(
        f"{proxy.url}/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=30
    )
    assert response.status_code == 400 and "does not read the route of" in response.text


def test_an_answer_that_a_model_has_stored_cannot_be_fetched(proxy):
    status, body = post(proxy, "own-responses", "say: hello")
    assert status == 200
    stored = f"{proxy.url}/v1/responses/{json.loads(body)['id']}"
    response = httpx.get(stored, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)
    assert response.status_code == 400 and "does not read the route of aget_responses" in response.text


HOOKS = """
import asyncio, sys
from litellm.exceptions import GuardrailRaisedException
from litellm.types.utils import Choices, EmbeddingResponse, Message, ModelResponse, ModelResponseStream
from litellm.types.utils import Delta, StreamingChoices, TextCompletionResponse
from anydepth_guardrail import AnydepthGuardrail

def guardrail(base):
    return AnydepthGuardrail(guardrail_name="g", event_hook="pre_call", api_base=base, api_key="of-the-guard")

async def outcome(awaitable):
    try:
        await awaitable
        return "passed"
    except GuardrailRaisedException as error:
        return f"{error.status_code} {error.blocked_content}"

async def main(base):
    def before(text, call_type="acompletion", at=base):
        data = {"messages": [{"role": "user", "content": text}]}
        call = {"user_api_key_dict": None, "cache": None, "data": data, "call_type": call_type}
        return outcome(guardrail(at).async_pre_call_hook(**call))
    def after(response, *more):
        data = {"messages": [{"role": "user", "content": "q"}, *more]}
        call = {"user_api_key_dict": None, "data": data, "response": response}
        return outcome(guardrail(base).async_post_call_success_hook(**call))
    def answer(text, **more):
        return ModelResponse(choices=[Choices(message=Message(content=text, **more))])
    print([
        await before("q"), await before("harm: q"), await before("harm", "aembedding"),
        await before("q", "atext_completion"), await before("q", at="http://127.0.0.1:9/v1"),
        await after(answer("a fine answer")), await after(answer("harm")),
        await after(answer("a fine answer", reasoning_content="harm")), await after(answer(None)),
        await after(EmbeddingResponse()), await after(TextCompletionResponse()),
        await after(answer("rm"), {"role": "assistant", "content": "the ha"}),  # harmful only as one text
    ])
    async def stream():
        yield ModelResponseStream(choices=[StreamingChoices(delta=Delta(content="fine " * 100))])
        for arguments in ('{"x": "', "fine " * 100, "fine " * 100, 'harm"}'):
            function = {"name": "look_up", "arguments": arguments}
            delta = Delta(content=None, tool_calls=[{"index": 0, "type": "function", "function": function}])
            yield ModelResponseStream(choices=[StreamingChoices(delta=delta)])
    left = []
    async def read():
        data = {"messages": [{"role": "user", "content": "q"}]}
        hook = guardrail(base).async_post_call_streaming_iterator_hook
        async for chunk in hook(user_api_key_dict=None, response=stream(), request_data=data):
            left.append("call" if chunk.choices[0].delta.tool_calls else "text")
    print(await outcome(read()), left)
    for wrong in ({"event_hook": "during_call"}, {"unreachable_fallback": "never"}):
        try: AnydepthGuardrail(guardrail_name="g", **{"event_hook": "pre_call", **wrong})
        except ValueError as error: print("refused", error)

asyncio.run(main(sys.argv[1]))
"""


def test_the_hooks_themselves(guard):
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "CRITICAL"}
    done = subprocess.run(
        [litellm_python(), "-c", HOOKS, f"{guard.url}/v1"],
        cwd=EXAMPLE, capture_output=True, text=True, env={**os.environ, **quiet, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, streamed, *refused = done.stdout.splitlines()
    assert first == str([
        "passed", "400 True", "passed", "400 False", "503 False", "passed", "400 True", "400 True", "passed", "passed",
        "400 False", "400 True",
    ])  # fmt: skip
    assert streamed.endswith("400 True ['text']")  # nothing of the call
    assert len(refused) == 2 and all(line.startswith("refused") for line in refused)
