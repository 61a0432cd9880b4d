"""Stop working for a client that has gone."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from anydepth.server.http.keep_alive import kept_alive

T = TypeVar("T")


class ClientGone(Exception):
    """The client has closed the connection; nobody reads the response."""


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do `work`; cancel it and raise ClientGone if the client goes before it is done."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class ClosingStream(StreamingResponse):
    """A stream that is kept open while it is quiet, and closes what it reads from in whatever way it ends.

    Closing the body is not enough: a body that was never begun does not close what it would have read.
    """

    def __init__(self, body: AsyncGenerator[bytes, None], source: AsyncGenerator[Any, None], **options: Any) -> None:
        super().__init__(body, **options)
        self._body, self._source = body, source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            async with kept_alive(send) as passing:
                await super().__call__(scope, receive, passing)
        finally:
            await self._body.aclose()
            await self._source.aclose()
