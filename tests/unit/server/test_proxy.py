"""A proxy's answers: what leaves, when, and what the upstream is asked."""

import json
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from anydepth.audit.verify import verify_audit
from tests.unit.apis.fake_api import ANSWER, NO, YES, partial_of
from tests.unit.server.proxy_hosts import QUESTION, REFUSAL, ProxyHost, text_of, until

WHOLE = "".join(ANSWER)
AUDITS: dict[str, Path] = {}


@pytest.fixture(scope="module", params=["openai", "anthropic"])
def api(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def running(api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyHost]:
    AUDITS[api] = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    prices = {"prompt": 1.0, "completion": 10.0}
    host = ProxyHost(api, upstream={"prices": prices}, audit={"kind": "jsonl", "path": str(AUDITS[api])})
    yield host
    host.stop()


@pytest.fixture
def proxy(running: ProxyHost) -> ProxyHost:
    running.follow()
    return running


def refuse_from(words: int) -> Callable[[str], str]:
    """A model that refuses in a fresh turn once its answer has so many words."""
    return lambda partial: NO if len(partial.split()) >= words else YES


def test_an_answer_that_nothing_halts_is_the_upstreams(proxy: ProxyHost) -> None:
    reply = proxy.ask()
    choice = reply.choices[0]
    assert choice.message.content == WHOLE and choice.finish_reason == "stop"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (50, 9), "the upstream's own count"
    used = choice.anydepth["usage"]
    assert used["answers"] == {
        "requests": 1, "requests_without_usage": 0, "prompt_tokens": 50, "completion_tokens": 9,
    }  # fmt: skip
    assert used["checks"]["requests"] == len(proxy.script.checks) == 5
    assert (used["checks"]["prompt_tokens"], used["checks"]["completion_tokens"]) == (500, 35)
    assert choice.anydepth["halted"] is False and choice.anydepth["checks"] == 6


def test_a_stream_is_the_upstreams_too(proxy: ProxyHost) -> None:
    chunks = proxy.stream(stream_options={"include_usage": True})
    assert text_of(chunks) == WHOLE
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == 9


@pytest.mark.parametrize("streamed", [False, True])
def test_a_halted_answer_has_the_shape_of_a_block(proxy: ProxyHost, streamed: bool) -> None:
    proxy.follow(look_ahead=refuse_from(4))
    if streamed:
        chunks = proxy.stream()
        choice, text = chunks[-1].choices[0], text_of(chunks)
    else:
        choice = proxy.ask().choices[0]
        text = choice.message.content
    assert text == f"one two \n\n{REFUSAL}" and choice.finish_reason == "content_filter"
    report = choice.anydepth
    assert report["halted"] and report["depth"] == 4 and report["reason"] == "policy" and report["score"] == 1.0
    assert (report["released_tokens"], report["withheld_tokens"]) == (2, 2)
    assert report["usage"]["answers"]["requests_without_usage"] == 1, "its stream was closed"
    assert choice.content_filter_results == {"anydepth": {"filtered": True, "severity": "high"}}


def test_a_request_that_is_refused_costs_no_answer(proxy: ProxyHost) -> None:
    proxy.follow(look_ahead=refuse_from(0))
    reply = proxy.ask()
    assert reply.choices[0].message.content == REFUSAL
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (0, 0)
    assert len(proxy.script.requests) == 1


def test_no_piece_leaves_before_the_check_that_covers_it(proxy: ProxyHost) -> None:
    """Each check waits until the client has read all that the checks before it let go."""
    turn, covered, seen = threading.Condition(), [""], [""]

    def look_ahead(partial: str) -> str:
        with turn:
            assert turn.wait_for(lambda: seen[0] == covered[0], 30)
            covered[0] = partial
        return YES

    proxy.follow(look_ahead=look_ahead)
    with proxy.ask(stream=True) as chunks:
        for chunk in chunks:
            with turn:
                seen[0] += chunk.choices[0].delta.content or ""
                assert covered[0].startswith(seen[0])
                turn.notify_all()
    assert seen == covered == [WHOLE]


def test_two_answers_are_written_at_once(proxy: ProxyHost) -> None:
    """Each stream begins only once the other has."""
    both = threading.Barrier(2, timeout=30)
    proxy.follow(before=lambda number: both.wait() if number == 0 else None)
    texts: list[str] = []
    other = threading.Thread(target=lambda: texts.append(proxy.ask().choices[0].message.content))
    other.start()
    texts.append(text_of(proxy.stream()))
    other.join(30)
    assert texts == [WHOLE, WHOLE] and not both.broken


def test_several_answers_to_one_request(proxy: ProxyHost) -> None:
    reply = proxy.ask(n=3)
    assert [choice.message.content for choice in reply.choices] == [WHOLE] * 3
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (50, 27), "one prompt, three answers"
    assert sum(bool(body.get("stream")) for body in proxy.script.bodies) == 3


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_goes_ends_the_upstreams_stream(proxy: ProxyHost, api: str, streamed: bool) -> None:
    begun = threading.Event()
    script = proxy.follow(hangs_at=3, before=lambda number: begun.set())
    body = json.dumps({"model": "m", "messages": QUESTION, "stream": streamed})
    client = HTTPConnection(proxy.url.removeprefix("http://"), timeout=30)
    client.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    assert begun.wait(30)
    if streamed:
        response = client.getresponse()
        assert any(b"one two" in line for line in iter(response.readline, b""))
        response.close()
    client.close()
    assert script.gone.wait(30), "the proxy hung up on the silent upstream"
    until(lambda: not proxy.engine.stats.live)
    until(lambda: [each for each in records(api) if each["kind"] == "answer"][-1]["outcome"] == "cancelled")


def records(api: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in AUDITS[api].read_text("utf-8").splitlines()]


def test_the_audit_accounts_for_every_piece(proxy: ProxyHost, api: str) -> None:
    id = proxy.ask().id
    (answer,) = [each for each in records(api) if each["kind"] == "answer" and id.endswith(each["id"])]
    assert answer["outcome"] == "finished" and answer["generated_tokens"] == 8
    assert answer["usage"]["checks"]["requests"] == 5 and answer["usage"]["answers"]["completion_tokens"] == 9
    assert answer["usage"]["answers"]["cost"] == pytest.approx(0.00014)
    assert [window["checked_at"] for window in answer["windows"]] == [2, 4, 6, 8]
    report = verify_audit(AUDITS[api])
    assert report.ok, report.violations


def test_the_metrics_have_what_the_upstream_was_asked(proxy: ProxyHost) -> None:
    before = proxy.metrics()
    proxy.ask()
    after = proxy.metrics()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown('anydepth_upstream_requests_total{purpose="answers"}') == 1
    assert grown('anydepth_upstream_requests_total{purpose="checks"}') == 5
    assert grown('anydepth_upstream_tokens_total{kind="completion",purpose="checks"}') == 35
    assert grown('anydepth_upstream_cost_total{purpose="answers"}') == pytest.approx(0.00014)
    assert after['anydepth_upstream_requests_total{purpose="trials"}'] >= 1
    assert grown('anydepth_answers_total{outcome="stop"}') == 1 and grown("anydepth_prompt_tokens_total") == 50


def test_the_model_is_listed(proxy: ProxyHost) -> None:
    assert [model.id for model in proxy.client.models.list()] == ["m"]
    with pytest.raises(openai.NotFoundError):
        proxy.ask(model="other")
    assert httpx.get(f"{proxy.url}/readyz").status_code == 200


def test_the_console_offers_what_can_be_asked_here(proxy: ProxyHost) -> None:
    config = httpx.get(f"{proxy.url}/console/config").json()
    assert config["prefill"] is False and config["model"] == "m"
    assert config["gallery"] and not any(each["prefill"] or "{header}" in each["prompt"] for each in config["gallery"])


def test_the_responses_api_is_served_too(proxy: ProxyHost) -> None:
    reply = proxy.client.responses.create(model="m", input="Count to eight.", instructions="Be brief.")
    assert reply.output_text == WHOLE and reply.usage is not None and reply.usage.output_tokens == 9
    proxy.follow(failing=lambda body: 500)
    for streamed in (False, True):
        with pytest.raises(openai.InternalServerError) as caught:
            proxy.client.responses.create(model="m", input="Count to eight.", stream=streamed)
        assert caught.value.status_code == 502


# -- what is asked of the upstream ---------------------------------------------------------------------------------


def streamed_body(proxy: ProxyHost) -> dict[str, Any]:
    return next(body for body in proxy.script.bodies if body.get("stream"))


def test_options_are_passed_on_by_the_upstreams_names(proxy: ProxyHost, api: str) -> None:
    options: dict[str, Any] = {"temperature": 0.5, "top_p": 0.9, "stop": ["six"], "max_tokens": 7}
    proxy.ask(**options, **({"seed": 4} if api == "openai" else {"extra_body": {"top_k": 4}}))
    body = streamed_body(proxy)
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.5, 0.9, 7)
    assert body["stop" if api == "openai" else "stop_sequences"] == ["six"]
    assert body["seed" if api == "openai" else "top_k"] == 4


def test_a_stop_string_is_no_part_of_the_text(proxy: ProxyHost) -> None:
    """Whether the upstream heeds it, as this one does not, or not."""
    assert proxy.ask(stop=["five "]).choices[0].message.content == "one two three four "
    assert text_of(proxy.stream(stop=["five "])) == "one two three four "


def test_the_answers_of_one_request_have_seeds_of_their_own(proxy: ProxyHost, api: str) -> None:
    if api == "anthropic":
        with pytest.raises(openai.BadRequestError, match="seed is 5, which the upstream does not take"):
            proxy.ask(seed=5)
        return
    proxy.ask(seed=5, n=2)
    assert sorted(body["seed"] for body in proxy.script.bodies if body.get("stream")) == [5, 6]


def test_a_call_is_not_gated_over_an_api(proxy: ProxyHost) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": "{}"}}
    reply = httpx.post(f"{proxy.url}/v1/gate", json={"messages": QUESTION, "tool_call": call}, timeout=30)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, "tool_call", "unsupported")
    assert "tool calls cannot be gated over an API" in error["message"] and proxy.script.requests == []


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"extra_body": {"min_p": 0.1}}, "min_p", "min_p is 0.1, which the upstream does not take"),
        ({"extra_body": {"repetition_penalty": 1.1}}, "repetition_penalty", "leave it out"),
        ({"presence_penalty": 0.5}, "presence_penalty", "presence_penalty"),
        ({"tools": [TOOL]}, "tools", "tools cannot be guarded over an API"),
        (
            {"messages": [*QUESTION, {"role": "assistant", "content": "one"}]},
            "messages",
            "a prefill cannot be continued",
        ),
        (
            {"messages": [*QUESTION, {"role": "tool", "tool_call_id": "a", "content": "x"}]},
            "messages",
            "message 1 has the role 'tool'",
        ),
        ({"messages": [{**QUESTION[0], "name": "Kim"}]}, "messages", "message 0 has name"),
    ],
)
def test_what_the_upstream_cannot_do_is_refused_by_name(
    proxy: ProxyHost, options: dict[str, Any], param: str, words: str
) -> None:
    for streamed in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            proxy.ask(stream=streamed, **options)
        assert caught.value.param == param and words in caught.value.message
    assert proxy.script.requests == [], "the upstream is not asked"


def test_plain_completions_need_another_capability(proxy: ProxyHost) -> None:
    with pytest.raises(openai.BadRequestError, match="that takes capability raw") as caught:
        proxy.client.completions.create(model="m", prompt="one two")
    assert caught.value.param == "prompt" and proxy.script.requests == []


def test_what_the_operator_allows_can_be_changed(proxy: ProxyHost) -> None:
    proxy.follow(look_ahead=refuse_from(4))
    choice = proxy.ask(extra_body={"anydepth": {"interval": 3, "checks": True}}).choices[0]
    assert [check["depth"] for check in choice.anydepth["timeline"]] == [0, 3, 6]
    assert choice.message.content == f"one two three \n\n{REFUSAL}"
    watched = proxy.ask(extra_body={"anydepth": {"release": "monitor"}}).choices[0]
    assert watched.message.content == WHOLE and watched.anydepth["would_halt"] is True


# -- scans ---------------------------------------------------------------------------------------------------------


def scan(proxy: ProxyHost, given: Any, **options: Any) -> Any:
    return proxy.client.moderations.create(model="m", input=given, **options).results[0]


def test_a_request_is_scanned_by_one_look_ahead(proxy: ProxyHost) -> None:
    assert scan(proxy, "Count to eight.").flagged is False
    assert [partial_of(body) for body in proxy.script.checks] == [""]
    proxy.follow(look_ahead=refuse_from(0))
    assert scan(proxy, "Count to eight.").flagged is True


def test_a_conversation_is_scanned_at_every_depth(proxy: ProxyHost) -> None:
    proxy.follow(look_ahead=refuse_from(4))
    told = {"extra_body": {"anydepth": {"checks": True}}}
    found = scan(proxy, [*QUESTION, {"role": "assistant", "content": WHOLE}], **told)
    windows = [window["text"] for window in found.anydepth["windows"]]
    assert windows == ["one two", " three four", " five six", " seven eight"]
    assert found.flagged is True and found.anydepth["depth"] == 4 and found.anydepth["method"] == "forks"
    partials = [partial_of(body) for body in proxy.script.checks]
    assert partials == [" ".join(WHOLE.split()[:depth]) for depth in (0, 2, 4, 6, 8)]


def test_a_scan_that_the_upstream_fails_is_an_error(proxy: ProxyHost) -> None:
    proxy.follow(failing=lambda body: 500)
    with pytest.raises(openai.APIStatusError) as caught:
        scan(proxy, "Count to eight.")
    assert caught.value.status_code == 502 and caught.value.code == "upstream_error"


def test_a_scan_one_of_whose_look_aheads_fails_is_an_error_and_no_finding(proxy: ProxyHost) -> None:
    """The scan goes on behind it, and the look-aheads that follow do not fail."""
    proxy.follow(failing=lambda body: 500 if partial_of(body) == "one two" else 0)
    with pytest.raises(openai.APIStatusError) as caught:
        scan(proxy, [*QUESTION, {"role": "assistant", "content": WHOLE}])
    assert caught.value.status_code == 502 and caught.value.code == "upstream_error"
    assert partial_of(proxy.script.checks[-1]) == WHOLE
