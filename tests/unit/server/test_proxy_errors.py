"""What a client of a proxy gets where the upstream fails: a clear error, and never an unguarded piece."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.unit.apis.fake_api import ANSWER, YES, partial_of
from tests.unit.server.proxy_hosts import QUESTION, ProxyHost, text_of, until

WHOLE = "".join(ANSWER)


@pytest.fixture(scope="module")
def running() -> Iterator[ProxyHost]:
    """A proxy that has room for one answer, and is soon tired of a silent upstream."""
    host = ProxyHost(upstream={"timeout_seconds": 2}, limits={"live": 1, "queue": 0})
    yield host
    host.stop()


@pytest.fixture
def proxy(running: ProxyHost) -> ProxyHost:
    until(lambda: not running.engine.stats.live)
    running.follow()
    return running


def is_check(body: dict[str, Any]) -> bool:
    return not body.get("stream")


def is_late_check(body: dict[str, Any]) -> bool:
    return is_check(body) and "three" in partial_of(body)


def failed(call: Callable[[], Any]) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("asked", ["check", "answer"])
@pytest.mark.parametrize(
    ("status", "told", "code", "words"),
    [
        (500, 502, "upstream_error", "the upstream failed or broke off"),
        (401, 502, "upstream_error", "the upstream refuses this server's key"),
        (404, 502, "upstream_error", "the upstream failed or broke off"),
        (400, 400, "upstream_rejected", "the upstream does not accept the request: Error code: 400"),
    ],
)
def test_a_failure_before_the_first_piece_has_its_status(
    proxy: ProxyHost, status: int, told: int, code: str, words: str, asked: str, streamed: bool
) -> None:
    proxy.follow(failing=lambda body: status if is_check(body) == (asked == "check") else 0)
    error = failed(lambda: proxy.ask(stream=streamed))
    assert (error.status_code, error.code) == (told, code) and words in error.message
    assert len(proxy.script.requests) == (1 if asked == "check" else 2), "the client does not ask again"
    assert "out of order" not in error.message or status == 400


def test_a_busy_upstream_is_told_as_such(proxy: ProxyHost) -> None:
    proxy.follow(failing=lambda body: 429)
    error = failed(
        lambda: proxy.client.with_options(max_retries=0).chat.completions.create(model="m", messages=QUESTION)
    )
    assert (error.status_code, error.code) == (429, "upstream_busy") and "out of order" not in error.message


@pytest.mark.parametrize("status", [500, 429])
def test_a_failure_after_the_first_piece_ends_the_stream(proxy: ProxyHost, status: int) -> None:
    proxy.follow(failing=lambda body: status if is_late_check(body) else 0)
    assert ended_with_an_error(proxy) == "one two "


def test_a_stream_that_breaks_off(proxy: ProxyHost) -> None:
    proxy.follow(break_after=3)
    assert ended_with_an_error(proxy) == "one two "
    error = failed(proxy.ask)
    assert (error.status_code, error.code) == (502, "upstream_error")


def test_a_silent_upstream(proxy: ProxyHost) -> None:
    script = proxy.follow(hangs_at=0)
    error = failed(proxy.ask)
    assert (error.status_code, error.code) == (504, "upstream_timeout")
    assert script.gone.wait(30)
    proxy.follow(hangs_at=3)
    assert ended_with_an_error(proxy) == "one two "


def ended_with_an_error(proxy: ProxyHost) -> str:
    """Ask for a stream that fails; the text that had left."""
    chunks: list[Any] = []
    with pytest.raises(openai.APIError, match="the upstream"):
        chunks.extend(proxy.ask(stream=True))  # keeps what had come before the error
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks)
    return text_of(chunks)


def test_a_call_in_the_answer_is_an_error(proxy: ProxyHost) -> None:
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    proxy.follow(extra_deltas=[{"tool_calls": [call]}])
    assert failed(proxy.ask).status_code == 502


def test_a_full_proxy_says_so(proxy: ProxyHost) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def before(number: int) -> None:
        begun.set()
        assert go_on.wait(30)

    proxy.follow(before=before)
    texts: list[str] = []
    first = threading.Thread(target=lambda: texts.append(proxy.ask().choices[0].message.content))
    first.start()
    assert begun.wait(30)
    client = proxy.client.with_options(max_retries=0)
    error = failed(lambda: client.chat.completions.create(model="m", messages=QUESTION))
    assert (error.status_code, error.code) == (429, "queue_full") and int(error.response.headers["retry-after"]) >= 1
    go_on.set()
    first.join(30)
    assert texts == [WHOLE]


def test_a_proxy_that_stops_hangs_up_on_a_silent_upstream(proxy: ProxyHost) -> None:
    begun = threading.Event()
    script = proxy.follow(hangs_at=1, before=lambda number: begun.set())
    errors: list[openai.APIStatusError] = []
    once = proxy.client.with_options(max_retries=0).chat.completions
    first = threading.Thread(target=lambda: errors.append(failed(lambda: once.create(model="m", messages=QUESTION))))
    first.start()
    assert begun.wait(30)
    proxy.engine.abort()
    first.join(30)
    assert script.gone.wait(30) and [(each.status_code, each.code) for each in errors] == [(503, "shutting_down")]


def test_a_guard_that_fails_open_goes_on() -> None:
    host = ProxyHost(guard={"on_error": "open"})
    try:
        host.follow(failing=lambda body: 500 if is_late_check(body) else 0, look_ahead=lambda partial: YES)
        choice = host.ask().choices[0]
        assert choice.message.content == WHOLE and choice.finish_reason == "stop"
        assert choice.anydepth["failed_checks"] == 4
    finally:
        host.stop()
