"""A stream that sends nothing for long is kept open by comments."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from anydepth.audit import open_audit
from anydepth.server.http import keep_alive
from anydepth.server.http.app import build_app
from anydepth.server.http.keep_alive import COMMENT, kept_alive
from anydepth.server.resources import listening
from anydepth.server.service import Service
from anydepth.settings import parse_settings
from tests.server import scripted_server
from tests.unit.apis.fake_api import ANSWER
from tests.unit.server.proxy_hosts import QUESTION, ProxyHost, text_of

STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(keep_alive, "SECONDS", 0.01)


def body_of(part: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": part, "more_body": more}


class Client:
    """What a client has got, and an event for the next comment that it gets."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []

    async def send(self, message: dict[str, Any]) -> None:
        self.got.append(message)

    def comments(self) -> int:
        return self.got.count(body_of(COMMENT))


async def until(holds: Any) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.001)


async def test_a_quiet_stream_gets_comments_between_its_events():
    client = Client()
    async with kept_alive(client.send) as send:
        await send({"type": "http.response.start", "status": 200, "headers": STREAM})
        await until(lambda: client.comments() >= 2)
        await send(body_of(b"data: 1\n\n"))
        await until(lambda: client.got[-1] == body_of(COMMENT))
        await send(body_of(b"data: 2\n\n", more=False))
        await send_nothing_for_a_while()
    assert client.got[-1] == body_of(b"data: 2\n\n", more=False)
    assert [each for each in client.got[1:] if each != body_of(COMMENT)] == [
        body_of(b"data: 1\n\n"),
        body_of(b"data: 2\n\n", more=False),
    ]


async def send_nothing_for_a_while() -> None:
    await asyncio.sleep(0.1)


@pytest.mark.parametrize("headers", [[], [(b"content-type", b"application/json")]])
async def test_another_response_gets_none_nor_does_a_stream_before_its_headers(headers):
    client = Client()
    async with kept_alive(client.send) as send:
        await send_nothing_for_a_while()
        assert not client.got
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send_nothing_for_a_while()
        await send(body_of(b"{}", more=False))
    assert [each["type"] for each in client.got] == ["http.response.start", "http.response.body"]


def heard_from(url: str, body: dict[str, Any], heard: threading.Event) -> bytes:
    """What a stream sends; `heard` is set with its first comment."""
    got = b""
    with httpx.stream("POST", url, json=body, timeout=60) as reply:
        for part in reply.iter_raw():
            got += part
            if COMMENT in got:
                heard.set()
    return got


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """A server of this process; gives its address."""
    server, sockets = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on")), listening("127.0.0.1", 0)
    server.install_signal_handlers = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets)), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


def test_an_answer_in_a_form_is_kept_until_its_end_and_heard_of_meanwhile(monkeypatch):
    heard, decode = threading.Event(), scripted_server.Session.decode

    def waiting(session: Any, n: int) -> Any:
        if session._given >= 4:
            heard.wait(30)
        return decode(session, n)

    monkeypatch.setattr(scripted_server.Session, "decode", waiting)
    settings = parse_settings({})
    engine = scripted_server.engine_of(settings, forms=True)
    with serving(build_app(Service(engine, settings, open_audit(settings.audit)), [])) as url:
        messages = [{"role": "user", "content": 'say: {"city": "Ulm", "guests": 12}'}]
        form = {"response_format": {"type": "json_object"}}
        body = {"model": "scripted", "stream": True, "messages": messages, **form}
        got = heard_from(f"{url}/v1/chat/completions", body, heard)
    comment = got.index(COMMENT)
    assert heard.is_set() and b"Ulm" in got[comment:] and b"Ulm" not in got[:comment]
    assert got.endswith(b"data: [DONE]\n\n")


@pytest.fixture
def proxy():
    host = ProxyHost(limits={"timeout_seconds": 60})
    yield host
    host.stop()


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
def test_a_client_hears_of_an_answer_that_is_waited_for(proxy, path):
    heard = threading.Event()
    proxy.follow(before=lambda number: number < 5 or heard.wait(30))
    asked = {"input": "Count to eight."} if path == "responses" else {"messages": QUESTION}
    body = {"model": "m", "stream": True, **asked}
    got = heard_from(f"{proxy.url}/v1/{path}", body, heard)
    assert heard.is_set() and b"eight" in got
    for event in got.split(b"\n\n"):
        assert not event or (event.startswith((b"data: ", b"event: ", b": keep-alive")) and event.count(b"data: ") < 2)


class Heard(httpx.HTTPTransport):
    """Counts the comments of the streams that pass; `two` is set with the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.comments, self.two = 0, threading.Event()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        response.stream = Counted(response.stream, self)
        return response


class Counted(httpx.SyncByteStream):
    """A stream whose comments are counted, wherever its parts begin."""

    def __init__(self, stream: Any, heard: Heard) -> None:
        self.stream, self.heard = stream, heard

    def __iter__(self) -> Iterator[bytes]:
        got = b""
        for part in self.stream:
            got += part
            self.heard.comments = got.count(COMMENT)
            if self.heard.comments >= 2:
                self.heard.two.set()
            yield part

    def close(self) -> None:
        self.stream.close()


def test_openais_client_passes_over_comments(proxy):
    """The fifth piece is written only once two comments have come to the client."""
    heard = Heard()
    proxy.client = proxy.client.with_options(http_client=httpx.Client(transport=heard))
    proxy.follow(before=lambda number: number < 5 or heard.two.wait(30))
    assert text_of(proxy.stream()) == "".join(ANSWER)
    assert heard.comments >= 2
