"""The guard's front of vLLM's own OpenAI server: an ASGI middleware that shows a halted answer as what it is.

No token needs it to be held back: that is the engine's business. It turns the engine's reports into
`finish_reason: "content_filter"`, the refusal and the `anydepth` object, and refuses the paths of vLLM that have no way
of showing a halt.
"""

import json
import logging

from starlette.datastructures import MutableHeaders
from starlette.requests import empty_receive
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anydepth.errors import AnydepthError
from anydepth.server.answer.blocked import Record, all_blocked
from anydepth.server.http.app import api_keys
from anydepth.server.http.gateway import Edge
from anydepth.server.http.http_errors import blocked, failure, refusal, retry_header
from anydepth.server.http.keep_alive import kept_alive
from anydepth.server.telemetry.metrics import Metrics
from anydepth.settings import Settings
from anydepth.vllm.additional_config import engine_options
from anydepth.vllm.front.gate_front import GateFront
from anydepth.vllm.front.passed_on import passed_on, taken_in
from anydepth.vllm.front.replies import RequestedReply, halted_reply, refusal_of, whole_reply
from anydepth.vllm.front.reports import Reports, ResponseReports, listen
from anydepth.vllm.front.request import rewrite
from anydepth.vllm.front.sse_reader import Events, rewritten
from anydepth.vllm.front.stage_counts import count_stages
from anydepth.vllm.front.stream import StreamReply

logger = logging.getLogger("vllm.anydepth")

CHAT, COMPLETIONS, GATE = "/v1/chat/completions", "/v1/completions", "/v1/gate"
OPEN_PATHS = frozenset({"/health", "/ping"})
PASSED = OPEN_PATHS | {"/load", "/version", "/metrics", "/metrics/", "/v1/models", "/tokenize", "/detokenize"}
"""Paths of vLLM that generate nothing. All others but the three that are guarded are refused."""


class GuardFront:
    """Give it to vLLM as `--middleware`; `anydepth serve --engine vllm` does.

    Args:
        app: The application it stands before.
        reports: Where the engine's reports are found; default: one that listens to vLLM's engine in this process.
    """

    def __init__(self, app: ASGIApp, reports: Reports | None = None) -> None:
        self._app, self._edge = app, None
        self._reports = Reports() if reports is None else reports
        if reports is None:
            listen(self._reports)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "only HTTP is guarded"})
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            await self._open(scope)(scope, receive, send)

    def _open(self, scope: Scope) -> ASGIApp:
        """The whole application, made of the settings that the engine was started with."""
        if self._edge is None:
            try:
                config = scope["app"].state.vllm_config
                settings = engine_options(config.additional_config).settings
                gate = GateFront(self._app, self._reports, config, COMPLETIONS)
                edge = Edge(
                    _Router(self._app, self._reports, settings, gate),
                    settings,
                    metrics=Metrics(),
                    keys=api_keys(settings.http),
                    open_paths=OPEN_PATHS,
                    paths=PASSED | {CHAT, COMPLETIONS, GATE},
                )
            except (AnydepthError, AttributeError) as error:
                logger.error("nothing is served: %s", error)
                return refusal(503, "the engine has no guard; its log says why")
            self._edge = edge
        return self._edge


class _Router:
    """Routes a request: chat, completions and gates through the guard, all others to vLLM."""

    def __init__(self, app: ASGIApp, reports: Reports, settings: Settings, gate: ASGIApp) -> None:
        self._app, self._reports, self._settings, self._gate = app, reports, settings, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in (CHAT, COMPLETIONS) and scope["method"] == "POST":
            await self._generate(scope, receive, send, chat=path == CHAT)
        elif path == GATE and scope["method"] == "POST":
            await self._gate(scope, receive, send)
        elif path == GATE:
            message = f"{GATE} does not take {scope['method']}; use POST"
            await refusal(405, message, headers={"Allow": "POST"})(scope, receive, send)
        elif path in PASSED or path in (CHAT, COMPLETIONS):
            await self._app(scope, receive, send)
        else:
            message = f"there is no {path!r} behind the guard; use {CHAT}, {COMPLETIONS} or {GATE}"
            await refusal(404, message, "not_offered")(scope, receive, send)

    async def _generate(self, scope: Scope, receive: Receive, send: Send, *, chat: bool) -> None:
        taken = await taken_in(scope, receive, lambda body: rewrite(body, self._settings, chat=chat))
        if isinstance(taken, Response):
            await taken(scope, receive, send)
            return
        body, asked = taken
        page = self._reports.responses[asked.id] = {}
        try:
            async with kept_alive(send) as passing:
                reply = _Reply(scope, passing, asked, page)
                await self._app(*passed_on(scope, receive, body, asked.id), reply.send)
        finally:
            count_stages(self._reports.responses.pop(asked.id), self._settings)


class _Reply:
    """Takes vLLM's response in and sends the guard's."""

    def __init__(self, scope: Scope, send: Send, asked: RequestedReply, page: ResponseReports) -> None:
        self._scope, self._send, self._asked, self._page = scope, send, asked, page
        self._start: Message = {}
        self._kind, self._body, self._begun, self._over = "", bytearray(), False, False
        self._events, self._stream, self._held = Events(), StreamReply(asked, page), b""

    async def send(self, message: Message) -> None:
        """Take in one of vLLM's messages."""
        if self._over:
            return
        if message["type"] == "http.response.start":
            self._start = message
            self._kind = MutableHeaders(scope=message).get("content-type", "").partition(";")[0].strip().lower()
        elif message["type"] == "http.response.body":
            if self._kind == "text/event-stream" and self._start["status"] == 200:
                await self._write_stream(message.get("body", b""), more=bool(message.get("more_body")))
            else:
                self._body += message.get("body", b"")
                if not message.get("more_body"):
                    await self._write_whole()

    async def _write_whole(self) -> None:
        status = self._start["status"]
        if (refused := refusal_of(self._page)) is not None:
            await self._answer(failure(refused))
        elif status != 200:
            halted = halted_reply(self._asked, self._page)
            await self._answer(self._reply(halted) if halted else Response(bytes(self._body), status, self._headers()))
        elif self._kind != "application/json":
            logger.error("vLLM answered with the content type %r", self._kind)
            await self._answer(refusal(500, "vLLM's answer cannot be read"))
        else:
            await self._answer(self._reply(whole_reply(json.loads(self._body), self._asked, self._page)))

    def _reply(self, body: Record) -> Response:
        choices = body.get("choices") or []
        if self._asked.as_error and all_blocked(choices):
            return blocked(choices[0]["anydepth"], self._asked.refusal)
        return JSONResponse(body)

    def _headers(self) -> dict[str, str]:
        own = {k: v for k, v in MutableHeaders(scope=self._start).items() if k != "content-length"}
        return own | retry_header(self._start["status"])

    async def _answer(self, response: Response) -> None:
        self._over = True
        await response(self._scope, empty_receive, self._send)

    async def _write_stream(self, part: bytes, *, more: bool) -> None:
        write, rest = self._stream.write, self._stream.rest
        out = self._held + b"".join(rewritten(event, write, rest) for event in self._events.push(part))
        self._held = b""
        if not self._begun and (refused := refusal_of(self._page)) is not None:
            await self._answer(failure(refused))
            return
        if self._asked.as_error and not self._stream.begun:
            if (report := self._stream.blocked) is not None:
                await self._answer(blocked(report.record(), self._asked.refusal))
                return
            self._held, out = (out, b"") if more else (b"", out)
        if (out or not more) and not self._begun:
            self._begun = True
            await self._send(self._start)
        if out or not more:
            await self._send({"type": "http.response.body", "body": out, "more_body": more})
