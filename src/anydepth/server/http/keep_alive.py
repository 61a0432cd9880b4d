"""Keep the connection of a quiet stream open."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from anydepth.server.http.sse import MEDIA_TYPE

SECONDS = 15.0
"""So long a stream may send nothing before a comment goes out: proxies cut connections idle for 30 to 100 seconds."""

COMMENT = b": keep-alive\n\n"
"""A comment of server-sent events, which clients pass over."""


@asynccontextmanager
async def kept_alive(send: Send) -> AsyncIterator[Send]:
    """A `send` for one response, which also sends `COMMENT` each time that its stream was quiet for `SECONDS`.

    Answers that are kept until their end, or wait for a check, send nothing for long. A response that is no stream of
    events gets no comment, nor does a stream before its headers or behind its end. Each message of a stream has to be
    whole events.
    """
    sent, turn = asyncio.Event(), asyncio.Lock()
    going_on = False

    async def passing(message: Message) -> None:
        nonlocal going_on
        async with turn:
            if message["type"] == "http.response.start":
                kind = MutableHeaders(scope=message).get("content-type", "")
                going_on = kind.startswith(MEDIA_TYPE)
            elif not message.get("more_body"):
                going_on = False
            await send(message)
        sent.set()

    async def comment() -> None:
        while True:
            sent.clear()
            try:
                async with asyncio.timeout(SECONDS):  # before 3.12 `wait_for` may swallow a cancellation
                    await sent.wait()
            except TimeoutError:
                async with turn:
                    if going_on:
                        await send({"type": "http.response.body", "body": COMMENT, "more_body": True})

    task = asyncio.create_task(comment())
    try:
        yield passing
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
