"""What goes wrong, in the envelope that OpenAI's clients read."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from anydepth.audit.trail import AuditError
from anydepth.errors import BadRequest, ConfigError, ModelNotFound, PromptError, UnsupportedModel
from anydepth.server.answer.blocked import filter_results
from anydepth.server.engine.engine import (
    AnswerTimeout,
    Busy,
    EngineError,
    ShuttingDown,
    UpstreamBusy,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
)


class WrongContentType(BadRequest):
    """A body that does not say that it is JSON.

    Pages of any origin may have a browser send such a body without asking first, so that they could use a server that
    listens on this machine only.
    """

    def __init__(self, given: str | None) -> None:
        found = "is missing" if given is None else f"is {given[:80]!r}"
        super().__init__(f"the header Content-Type {found}; send `Content-Type: application/json`")


# Kind of error -> HTTP status, OpenAI's `type`, OpenAI's `code`; the first that fits counts.
_KINDS: tuple[tuple[type[Exception], int, str, str], ...] = (
    (ModelNotFound, 404, "invalid_request_error", "model_not_found"),
    (Busy, 429, "rate_limit_error", "queue_full"),
    (ShuttingDown, 503, "server_error", "shutting_down"),
    (AnswerTimeout, 504, "timeout_error", "timeout"),
    (AuditError, 503, "server_error", "audit_failed"),
    (UpstreamBusy, 429, "rate_limit_error", "upstream_busy"),
    (UpstreamTimeout, 504, "timeout_error", "upstream_timeout"),
    (UpstreamRejected, 400, "invalid_request_error", "upstream_rejected"),
    (UpstreamError, 502, "server_error", "upstream_error"),
    (EngineError, 500, "server_error", "engine_error"),
    (WrongContentType, 415, "invalid_request_error", "unsupported_media_type"),
    (PromptError, 400, "invalid_request_error", "invalid_prompt"),
    (ConfigError, 400, "invalid_request_error", "invalid_value"),
    (UnsupportedModel, 400, "invalid_request_error", "not_offered"),
)


def envelope(message: str, kind: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal(
    status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The response to a request that is not answered, for a reason that is no exception of ours."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse(envelope(message, kind, code), status, {**(headers or {}), **retry_header(status)})


def retry_header(status: int) -> dict[str, str]:
    """The header that keeps OpenAI's clients from asking again where that would cost a second generation."""
    return {"x-should-retry": "false"} if status in (500, 502, 504) else {}


def blocked(report: Mapping[str, Any], refusal: str) -> JSONResponse:
    """The error in place of an answer that was halted, for `[blocked] style = "error"`.

    Args:
        report: The `anydepth` object of the answer; it is in the body, and without its timeline in `X-Anydepth`.
        refusal: Text in place of what is withheld.
    """
    cause = "a check failed" if report["reason"] == "error" else "the guard stopped it"
    body = envelope(f"the answer is blocked, since {cause}: {refusal}", "invalid_request_error", "content_filter")
    body["error"] |= {"anydepth": dict(report), "content_filter_results": filter_results()}
    told = {name: value for name, value in report.items() if name != "timeline"}
    return JSONResponse(body, 400, {"X-Anydepth": json.dumps(told), "x-should-retry": "false"})


def describe(error: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP status and body of an error; of an unknown one, the status alone."""
    for kind, status, name, code in _KINDS:
        if isinstance(error, kind):
            param, own = getattr(error, "param", None), getattr(error, "code", None)
            return status, envelope(str(error), name, own or code, param)
    return 500, envelope("the server failed; its log says where", "server_error", "internal_error")


def check_json(request: Request) -> None:
    """Raise WrongContentType unless the header says that the body is JSON."""
    content_type = request.headers.get("content-type")
    media = (content_type or "").partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise WrongContentType(content_type)


def failure(error: Exception, prompt: str | None = None) -> JSONResponse:
    """The response for an error; `prompt` is the field that has the prompt, where an error does not name one itself."""
    status, body = describe(error)
    if isinstance(error, PromptError):
        body["error"]["param"] = body["error"]["param"] or prompt
    wait = error.retry_after if isinstance(error, Busy | UpstreamBusy) else None
    headers = retry_header(status) if wait is None else {"Retry-After": str(wait)}
    return JSONResponse(body, status, headers)
