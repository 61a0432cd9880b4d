"""The application: paths and what answers them."""

import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from anydepth import __version__
from anydepth.errors import AnydepthError, ConfigError
from anydepth.files import read_text
from anydepth.server.http.body_errors import complaint, unreadable
from anydepth.server.http.chat import CHAT
from anydepth.server.http.completions import COMPLETIONS
from anydepth.server.http.console import console_paths, mount_console
from anydepth.server.http.gateway import OPEN_PATHS, Edge
from anydepth.server.http.gating import gate
from anydepth.server.http.http_errors import check_json, failure, refusal
from anydepth.server.http.moderations import moderate
from anydepth.server.http.requests import ChatRequest, CompletionRequest, GateRequest, ModerationRequest
from anydepth.server.http.responses import (
    ChatReply,
    ErrorReply,
    GateReply,
    Health,
    ItemsReply,
    ModelCard,
    ModelList,
    ModerationReply,
    TextReply,
)
from anydepth.server.http.responses_reply import respond_with_items
from anydepth.server.http.responses_request import ResponsesRequest
from anydepth.server.http.writing import respond
from anydepth.server.service import Service
from anydepth.server.telemetry.metrics import CONTENT_TYPE
from anydepth.settings import HttpTable

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": text}
    for status, text in {
        400: "The request cannot be done as it is",
        401: "The API key is missing or wrong",
        404: "There is no such model or path",
        413: "The body is too large",
        415: "The header Content-Type does not say that the body is JSON",
        429: "Too many answers wait, or the upstream is busy; see Retry-After",
        500: "The engine failed",
        502: "The upstream failed",
        503: "The server is shutting down, or the audit trail cannot be written",
        504: "The answer took too long",
    }.items()
}
_PROMPTS = {
    "/v1/chat/completions": "messages",
    "/v1/responses": "input",
    "/v1/completions": "prompt",
    "/v1/moderations": "input",
    "/v1/gate": "messages",
}
"""Path -> the field that has the prompt."""

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {}}}, "description": "The answer, or its stream"}
}


def build_api(service: Service) -> FastAPI:
    """The paths of the API, without keys, limits or headers: those are `build_app`'s."""
    facts = service.engine.facts
    card = ModelCard(id=facts.model, created=int(time.time()), max_model_len=facts.context_length)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.engine.start()
        try:
            yield
        finally:
            await service.engine.stop()
            service.audit.close()

    app = FastAPI(
        title="anydepth",
        version=__version__,
        description="An OpenAI-compatible server that guards every answer.",
        docs_url=None,  # these pages load scripts from another site
        redoc_url=None,
        lifespan=lifespan,
    )
    _handle_errors(app)
    json_only = [Depends(check_json)]

    @app.post("/v1/chat/completions", response_model=ChatReply, responses=_ERRORS | _STREAM, dependencies=json_only)
    async def _chat(request: Request, body: ChatRequest) -> Response:
        return await respond(request, body, service, CHAT)

    @app.post("/v1/responses", response_model=ItemsReply, responses=_ERRORS | _STREAM, dependencies=json_only)
    async def _respond(request: Request, body: ResponsesRequest) -> Response:
        return await respond_with_items(request, body, service)

    @app.post("/v1/completions", response_model=TextReply, responses=_ERRORS | _STREAM, dependencies=json_only)
    async def _complete(request: Request, body: CompletionRequest) -> Response:
        return await respond(request, body, service, COMPLETIONS)

    @app.post("/v1/moderations", response_model=ModerationReply, responses=_ERRORS, dependencies=json_only)
    async def _moderate(request: Request, body: ModerationRequest) -> Response:
        return await moderate(request, body, service)

    @app.post("/v1/gate", response_model=GateReply, responses=_ERRORS, dependencies=json_only)
    async def _gate(request: Request, body: GateRequest) -> Response:
        return await gate(request, body, service)

    @app.get("/v1/models", responses=_only(401))
    async def _models() -> ModelList:
        return ModelList(data=[card])

    @app.get("/v1/models/{model:path}", responses=_only(401, 404))
    async def _model(model: str) -> ModelCard:
        service.check_model(model)
        return card

    @app.get("/healthz", response_model=Health, responses={503: {"model": Health}})
    async def _healthz() -> Response:
        return _health(service.engine.ready)

    @app.get("/readyz", response_model=Health, responses={503: {"model": Health}})
    async def _readyz() -> Response:
        await service.audit.recover()
        return _health(service.ready)

    @app.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_only(401)})
    async def _metrics() -> Response:
        await service.audit.recover()
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    if service.settings.console.enabled:
        mount_console(app, service)
    for operation in (each for path in app.openapi()["paths"].values() for each in path.values()):
        operation["responses"].pop("422", None)  # FastAPI's own status for a bad body; OpenAI's is 400
    return app


def build_app(service: Service, keys: Sequence[str]) -> Edge:
    """The whole ASGI application; `keys` are its API keys. Without keys it needs none."""
    api, open_paths = build_api(service), OPEN_PATHS
    if service.settings.console.enabled:
        open_paths |= console_paths()  # a browser sends no key with a page; what the page then asks for needs it
    paths = {path for route in api.routes if (path := getattr(route, "path", ""))}
    return Edge(api, service.settings, metrics=service.metrics, keys=keys, open_paths=open_paths, paths=paths)


def api_keys(table: HttpTable) -> list[str]:
    """The API keys: of the environment, and of the file.

    Raises:
        ConfigError: The variable is set and empty, or is named in guard.toml and not set, or the file cannot be read or
            is empty: none of these must open the server to everybody.
    """
    found = os.environ.get(table.api_key_env)
    if found is not None and not found.strip():
        raise ConfigError(f"the environment variable {table.api_key_env} is set and empty; give a key, or unset it")
    if found is None and "api_key_env" in table.model_fields_set and table.api_key_file is None:
        raise ConfigError(
            f"[http] api_key_env is {table.api_key_env}, which is not set; set it to a key, or leave api_key_env out"
        )
    keys = [] if found is None else [found.strip()]
    if table.api_key_file is not None:
        lines = read_text(Path(table.api_key_file), f"[http] api_key_file {table.api_key_file}").split("\n")
        listed = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not listed:
            raise ConfigError(f"[http] api_key_file {table.api_key_file} has no key in it; write one a line")
        keys += listed
    return keys


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(AnydepthError)
    async def _ours(request: Request, error: Exception) -> Response:
        return failure(error, _PROMPTS.get(request.url.path))

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return failure(unreadable(JSONDecodeError(first["ctx"]["error"], str(error.body), first["loc"][-1])))
        return failure(complaint(first))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 400 and isinstance(error.__cause__, Exception):  # FastAPI could not read the body
            return failure(unreadable(error.__cause__))
        return refusal(error.status_code, _said(error, request), headers=error.headers)


def _said(error: HTTPException, request: Request) -> str:
    path = request.url.path[:80]
    if error.status_code == 404:
        return f"there is no path {path!r} here; those of the API begin with /v1, and /openapi.json has them all"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"{path} does not take {request.method}; use {allowed}"
    return str(error.detail)


def _only(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _ERRORS[status] for status in statuses}


def _health(good: bool) -> Response:
    return JSONResponse({"status": "ok" if good else "unavailable"}, 200 if good else 503)
