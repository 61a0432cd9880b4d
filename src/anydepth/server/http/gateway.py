"""The outermost layer: keys, origins, size limits, safe headers, request logs, and an answer for every error."""

import hashlib
import hmac
import logging
import time
import uuid
from collections.abc import Collection

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anydepth.server.http.cors import Cors
from anydepth.server.http.disconnect import ClientGone
from anydepth.server.http.http_errors import failure, refusal
from anydepth.server.telemetry.metrics import Metrics
from anydepth.settings import Settings

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Set on every response that does not set them itself (the console has a policy of its own)."""

_READ_AWAY = 8
"""How many times the largest body is taken in and thrown away."""

_TOO_LARGE = "the body is larger than {} bytes; send less"


class Edge:
    """An ASGI application around another.

    Args:
        app: The application.
        settings: The operator's settings: the largest body, origins whose pages may use the server, public metrics.
        metrics: Where requests are counted.
        keys: API keys; empty lets everybody in.
        open_paths: Paths that need no key.
        paths: Paths that are counted by name; others are counted together.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        *,
        metrics: Metrics,
        keys: Collection[str],
        open_paths: Collection[str],
        paths: Collection[str],
    ) -> None:
        self._app, self._metrics, self._body_bytes = app, metrics, settings.limits.body_bytes
        self._open, self._paths = frozenset(open_paths), frozenset(paths)
        if settings.http.public_metrics:
            self._open |= {"/metrics", "/metrics/"}
        self._digests = [_digest(key) for key in keys]
        self._cors = Cors(settings.http.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request: keys, size and headers here, the rest in the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(receive, self._cors.sender(scope, send), self._body_bytes)
        try:
            refused = self._cors.preflight(scope) or self._refusal(scope)
            if refused is not None:
                await exchange.read_away()
                await refused(scope, exchange.receive, exchange.send)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        except ClientGone:
            exchange.status = exchange.status or 499
        except Exception as error:
            logger.error("request failed", exc_info=error, extra={"request": exchange.id})
            if not exchange.status:  # else a response has begun: the connection just ends
                await failure(error)(scope, exchange.receive, exchange.send)
        finally:
            self._account(scope, exchange)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._body_bytes:
            return refusal(413, _TOO_LARGE.format(self._body_bytes), "body_too_large", {"Connection": "close"})
        if self._digests and scope["path"] not in self._open and not self._allowed(headers):
            message = "the API key is missing or wrong; send the header `Authorization: Bearer KEY`"
            return refusal(401, message, "invalid_api_key", {"WWW-Authenticate": "Bearer"})
        return None

    def _allowed(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip()) if scheme.lower() == "bearer" else _digest("")
        # Digests of one length, all of them compared: the time tells nothing about a key.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(matches)

    def _account(self, scope: Scope, exchange: "_Exchange") -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._metrics.requests.labels(path, str(exchange.status)).inc()
        facts = {
            "request": exchange.id,
            "method": scope["method"],
            "path": path,
            "status": exchange.status,
            "seconds": round(time.perf_counter() - exchange.begun, 4),
        }
        quiet = path in self._open or path == "/metrics"
        logger.log(logging.DEBUG if quiet else logging.INFO, "request", extra=facts)


class _Exchange:
    """One request and its response."""

    def __init__(self, receive: Receive, send: Send, body_bytes: int) -> None:
        self.id, self.begun, self.status = f"req_{uuid.uuid4().hex}", time.perf_counter(), 0
        self._receive, self._send = receive, send
        self._left, self._body_bytes = body_bytes, body_bytes

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise HTTPException(413, _TOO_LARGE.format(self._body_bytes))  # FastAPI lets only these through
        return message

    async def read_away(self) -> None:
        """Take in what the client is still sending, within reason: cut off in the middle it would not see why."""
        left = _READ_AWAY * self._body_bytes
        while left > 0:
            message = await self._receive()
            left -= len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body"):
                return

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.id
            for name, value in SAFE_HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
