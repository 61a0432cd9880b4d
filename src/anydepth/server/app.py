"""The application: paths and what answers them."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from anydepth import __version__
from anydepth.errors import AnydepthError, ConfigError
from anydepth.files import read_text
from anydepth.server.chat import chat
from anydepth.server.completions import complete
from anydepth.server.console import console_paths, mount_console
from anydepth.server.edge import OPEN_PATHS, Edge
from anydepth.server.failures import envelope, failure, invalid
from anydepth.server.metrics import CONTENT_TYPE
from anydepth.server.moderations import moderate
from anydepth.server.replies import ChatReply, ErrorReply, Health, ModelCard, ModelList, ModerationReply, TextReply
from anydepth.server.schema import ChatRequest, CompletionRequest, ModerationRequest
from anydepth.server.service import Service
from anydepth.settings import HttpTable

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": text}
    for status, text in {
        400: "The request cannot be done as it is",
        401: "The API key is missing or wrong",
        404: "There is no such model or path",
        413: "The body is too large",
        429: "Too many answers wait; see Retry-After",
        500: "The engine failed",
        503: "The server is shutting down",
        504: "The answer took too long",
    }.items()
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {}}}, "description": "The answer, or its stream"}
}


def build_api(service: Service) -> FastAPI:
    """The paths of the API, without keys, limits or headers: those are `build_app`'s."""
    created = int(time.time())

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

    @app.post("/v1/chat/completions", response_model=ChatReply, responses=_ERRORS | _STREAM)
    async def _chat(request: Request, body: ChatRequest) -> Response:
        return await chat(request, body, service)

    @app.post("/v1/completions", response_model=TextReply, responses=_ERRORS | _STREAM)
    async def _complete(request: Request, body: CompletionRequest) -> Response:
        return await complete(request, body, service)

    @app.post("/v1/moderations", response_model=ModerationReply, responses=_ERRORS)
    async def _moderate(request: Request, body: ModerationRequest) -> Response:
        return await moderate(request, body, service)

    @app.get("/v1/models", response_model=ModelList, responses=_only(401))
    async def _models() -> Response:
        return JSONResponse({"object": "list", "data": [_card(service, created)]})

    @app.get("/v1/models/{model:path}", response_model=ModelCard, responses=_only(401, 404))
    async def _model(model: str) -> Response:
        service.check_model(model)
        return JSONResponse(_card(service, created))

    @app.get("/healthz", response_model=Health, responses={503: {"model": Health}})
    async def _healthz() -> Response:
        return _health(service.engine.ready)

    @app.get("/readyz", response_model=Health, responses={503: {"model": Health}})
    async def _readyz() -> Response:
        return _health(service.ready)

    @app.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_only(401)})
    async def _metrics() -> Response:
        _ = service.ready  # keeps its gauge up to date
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    if service.settings.console.enabled:
        mount_console(app, service)
    for operation in (each for path in app.openapi()["paths"].values() for each in path.values()):
        operation["responses"].pop("422", None)  # FastAPI's own status for a bad body; OpenAI's is 400
    return app


def build_app(service: Service) -> Edge:
    """The whole application."""
    settings = service.settings
    api = build_api(service)
    keys = api_keys(settings.http)
    open_paths = OPEN_PATHS | ({"/metrics"} if settings.http.public_metrics else set())
    if settings.console.enabled:
        open_paths |= console_paths()  # a browser sends no key with a page; what the page then asks for needs it
    paths = {path for route in api.routes if (path := getattr(route, "path", ""))}
    limit = settings.limits.body_bytes
    return Edge(api, metrics=service.metrics, keys=keys, open_paths=open_paths, body_bytes=limit, paths=paths)


def api_keys(table: HttpTable) -> list[str]:
    """The API keys: of the environment, and of the file; ConfigError if the file cannot be read or is empty."""
    keys = [key] if (key := os.environ.get(table.api_key_env, "").strip()) else []
    if table.api_key_file is not None:
        lines = read_text(Path(table.api_key_file), f"[http] api_key_file {table.api_key_file}").split("\n")
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:  # an empty file must not open the server to everybody
            raise ConfigError(f"[http] api_key_file {table.api_key_file} has no key in it; write one a line")
        keys += found
    return keys


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(AnydepthError)
    async def _ours(_: Request, error: Exception) -> Response:
        return failure(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return invalid(error.errors())

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = "invalid_request_error" if error.status_code < 500 else "server_error"
        body = envelope(str(error.detail), kind, None)
        return JSONResponse(body, error.status_code, error.headers)


def _only(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _ERRORS[status] for status in statuses}


def _card(service: Service, created: int) -> dict[str, Any]:
    facts = service.engine.facts
    return {
        "id": facts.model,
        "object": "model",
        "created": created,
        "owned_by": "anydepth",
        "max_model_len": facts.context_length,
    }


def _health(good: bool) -> Response:
    return JSONResponse({"status": "ok" if good else "unavailable"}, 200 if good else 503)
