"""`POST /v1/gate` before vLLM: a proposed call is written here, and read and judged in the engine."""

import asyncio
import json
import logging
import time
import uuid
from functools import cache
from typing import Any

from prometheus_client import REGISTRY, Counter
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.requests import empty_receive
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anydepth.audit.trail import AuditError
from anydepth.errors import AnydepthError
from anydepth.server.http.body_errors import complaint
from anydepth.server.http.disconnect import ClientGone
from anydepth.server.http.http_errors import failure, refusal, retry_header
from anydepth.server.http.prompting import gate_prompt
from anydepth.server.http.request_limits import check_entries
from anydepth.server.http.requests import GateRequest
from anydepth.server.telemetry.metrics import gate_counter
from anydepth.templates.call_formats import ToolFormat, choose_format, formats
from anydepth.templates.proposed_call import CallPrompt
from anydepth.vllm.front.passed_on import passed_on, taken_in
from anydepth.vllm.front.replies import refusal_of
from anydepth.vllm.front.reports import Reports, ResponseReports
from anydepth.vllm.front.stage_counts import count_stages
from anydepth.vllm.gate_question import GATE, GateQuestion
from anydepth.vllm.report_field import KEY
from anydepth.vllm.setup import Setup

logger = logging.getLogger("vllm.anydepth")


class GateFront:
    """Judges calls by requests for plain completions of the prompt with the call; the engine decodes nothing of them.

    Args:
        app: vLLM's application.
        reports: Where the engine's reports are found.
        vllm_config: What the engine was started with.
        completions: Path of vLLM's plain completions.
    """

    def __init__(self, app: ASGIApp, reports: Reports, vllm_config: Any, completions: str) -> None:
        self._app, self._reports, self._config, self._completions = app, reports, vllm_config, completions
        self._setup: Setup | None = None
        self._loading = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        response = await self._respond(scope, receive)
        await response(scope, empty_receive, send)

    async def _respond(self, scope: Scope, receive: Receive) -> Response:
        begun, asked = time.time(), await taken_in(scope, receive, _read)
        if isinstance(asked, Response):
            return asked
        setup, started = await self._loaded(), getattr(scope["app"].state, "args", None)
        try:
            check_entries(setup.options.settings.limits, asked.messages, "messages")
            call = await asyncio.to_thread(gate_prompt, setup.model.template, asked, _written(setup, started))
        except AnydepthError as error:
            return failure(error, "messages")
        name = uuid.uuid4().hex
        page = self._reports.responses[name] = {}
        reply, gone = _KeptReply(), False

        async def noting() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or message["type"] == "http.disconnect"
            return message

        try:
            body = _question(asked, call, f"gate-{name}", text=setup.options.settings.audit.text)
            await self._app(*passed_on(scope, noting, body, name, self._completions), reply.send)
        finally:
            del self._reports.responses[name]
            count_stages(page, setup.options.settings)
        if gone and not page:
            raise ClientGone
        return _judged(page, {"id": f"gate-{name}", "object": "gate", "created": int(begun)}, asked, reply)

    async def _loaded(self) -> Setup:
        """The guard's facts of the model; its tokenizer is loaded for the first call."""
        async with self._loading:
            if self._setup is None:
                self._setup = await asyncio.to_thread(Setup.of, self._config)
            return self._setup


class _KeptReply:
    """Keeps vLLM's response."""

    def __init__(self) -> None:
        self.start: Message = {"status": 500, "headers": []}
        self.body = bytearray()

    async def send(self, message: Message) -> None:
        """Take in one of vLLM's messages."""
        if message["type"] == "http.response.start":
            self.start = message
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

    def response(self) -> Response:
        """Give it as it is, with what keeps clients from asking again in vain."""
        status = self.start["status"]
        own = {k: v for k, v in Headers(raw=self.start["headers"]).items() if k != "content-length"}
        return Response(bytes(self.body), status, own | retry_header(status))


def _read(body: dict[str, Any]) -> GateRequest:
    try:
        return GateRequest.model_validate(body)
    except ValidationError as error:
        raise complaint(error.errors(include_url=False)[0]) from None  # pyright: ignore[reportArgumentType]


def _written(setup: Setup, started: Any) -> ToolFormat | None:
    """How a call is written where the template writes none: as the parser that vLLM was started with reads it."""
    name = (getattr(started, "tool_call_parser", None) or "").replace("_", "-")
    known = name in {row.name for row in formats()}
    return choose_format(name if known else "auto", str(getattr(setup.model.tokenizer, "chat_template", None) or ""))


def _question(asked: GateRequest, call: CallPrompt, name: str, *, text: bool) -> dict[str, Any]:
    """The request to vLLM: the tokens up to the end of the call, and what the engine is to do with them."""
    question = GateQuestion(
        id=name,
        tool=call.call.name,
        arguments=asked.tool_call.function.arguments if text else "",
        prefill=call.prompt.prefill,
        before=call.before,
        control=asked.control,
    )
    options = {} if asked.anydepth is None else asked.anydepth.model_dump(exclude_unset=True)
    told = json.dumps({**options, GATE: question.model_dump()})
    body = {"prompt": list(call.prompt.ids), "max_tokens": 1, "temperature": 0, "vllm_xargs": {KEY: told}}
    return body if asked.model is None else {**body, "model": asked.model}


def _judged(page: ResponseReports, head: dict[str, Any], asked: GateRequest, reply: _KeptReply) -> Response:
    """The response; without the engine's word on the call it is an error, and never a verdict."""
    if (refused := refusal_of(page)) is not None:
        return failure(refused)
    told = page.get((0, 0), {})
    if found := told.get("gate"):
        _gates().labels(str(found["allowed"]).lower(), found["anydepth"]["reason"]).inc()
        return JSONResponse({**head, "model": asked.model or told["model"], **found})
    if told.get("error") == AuditError.__name__:
        return failure(AuditError("the audit trail cannot be written; the call was not judged"))
    if reply.start["status"] != 200:
        return reply.response()
    logger.error("the engine did not judge a call: %s", told.get("error", "it told nothing"))
    return refusal(500, "the engine did not judge the call; its log says why, do not run it", "engine_error")


@cache
def _gates() -> Counter:
    """The counter of this process: vLLM's `/metrics` shows what is in this registry, which takes each name once."""
    return gate_counter(REGISTRY)
