"""Several clients at once: turns, the queue, timeouts, and clients that go."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from anydepth.audit.verify import verify_audit
from tests.server.process import ServerProcess
from tests.server.test_chat import HARM, ask, stream, text_of

LONG = "slow: " + "a long story " * 60


def test_answers_take_turns(client):
    """A short answer that comes later is done long before the long one that was there first."""
    done: dict[str, float] = {}

    def go(name: str, text: str, **options):
        ask(client, text, **options)
        done[name] = time.monotonic()

    first = threading.Thread(target=go, args=("long", LONG))
    first.start()
    time.sleep(0.1)
    go("short", "slow: hi")
    first.join()
    assert done["short"] < done["long"] - 0.3


def test_many_clients_get_their_own_answers(client):
    def go(number: int) -> None:
        text = f"this is the answer of client {number}, and of nobody else"
        if number % 3 == 0:
            assert text_of(stream(client, f"say: {text}")) == text
        elif number % 3 == 1:
            assert ask(client, f"say: {text}").choices[0].message.content == text
        else:
            assert ask(client, HARM).choices[0].finish_reason == "content_filter"

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(go, range(24)))


def test_a_full_queue_says_so():
    with ServerProcess.scripted({"limits": {"live": 1, "queue": 1}}) as small:
        client = small.client()
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(ask, client, LONG, max_tokens=200) for _ in range(2)]
            small.until(lambda: small.metric("anydepth_live_answers") + small.metric("anydepth_queue_length") == 2)
            with pytest.raises(openai.RateLimitError) as caught:
                ask(client, "say: hello")
            assert int(caught.value.response.headers["retry-after"]) >= 1
            assert caught.value.code == "queue_full"
            for each in waiting:
                assert each.result().choices
        assert ask(client, "say: hello").choices[0].message.content == "hello"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_goes_frees_its_place(server, client, audit_path, streamed):
    body = {"model": "scripted", "messages": [{"role": "user", "content": LONG}], "stream": streamed}
    before = server.metric("anydepth_answers_total")
    recorded = verify_audit(audit_path).answers["cancelled"]
    if streamed:
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
            next(response.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=0.2)
    server.until(lambda: server.metric("anydepth_live_answers") == 0, seconds=0.5)  # it would have taken a second
    server.until(lambda: server.metric("anydepth_answers_total") == before + 1)
    # a thread of its own writes the record, once nobody waits for it
    server.until(lambda: verify_audit(audit_path).answers["cancelled"] > recorded)
    report = verify_audit(audit_path)
    assert report.ok, report.violations


def test_an_answer_that_takes_too_long():
    with ServerProcess.scripted({"limits": {"timeout_seconds": 0.3}}) as hurried:
        client = hurried.client()
        with pytest.raises(openai.APIStatusError) as caught:
            ask(client, LONG)
        assert caught.value.status_code == 504
        chunks: list = []
        with pytest.raises(openai.APIError, match="took over"):
            chunks.extend(ask(client, LONG, stream=True))
        assert len(chunks) > 3 and chunks[-1].choices[0].finish_reason is None
        hurried.until(lambda: hurried.metric("anydepth_live_answers") == 0)
