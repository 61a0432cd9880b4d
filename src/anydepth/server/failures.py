"""What goes wrong, in the envelope that OpenAI's clients read."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse

from anydepth.audit.trail import AuditError
from anydepth.errors import AnydepthError, ConfigError, PromptError, UnsupportedModel
from anydepth.server.engine import AnswerTimeout, Busy, EngineError, ShuttingDown


class BadRequest(ConfigError):
    """A request that cannot be done as it is; `param` is the field to change."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


class ModelNotFound(AnydepthError):
    """The request names a model that is not served."""


# Kind of error -> HTTP status, OpenAI's `type`, OpenAI's `code`; the first that fits counts.
_KINDS: tuple[tuple[type[Exception], int, str, str], ...] = (
    (ModelNotFound, 404, "invalid_request_error", "model_not_found"),
    (Busy, 429, "rate_limit_error", "queue_full"),
    (ShuttingDown, 503, "server_error", "shutting_down"),
    (AnswerTimeout, 504, "timeout_error", "timeout"),
    (AuditError, 503, "server_error", "audit_failed"),
    (EngineError, 500, "server_error", "engine_error"),
    (PromptError, 400, "invalid_request_error", "invalid_prompt"),
    (ConfigError, 400, "invalid_request_error", "invalid_value"),
    (UnsupportedModel, 400, "invalid_request_error", "not_offered"),
)


def envelope(message: str, kind: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe(error: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP status and body of an error; of one that we do not know, nothing but that."""
    for kind, status, name, code in _KINDS:
        if isinstance(error, kind):
            param, own = getattr(error, "param", None), getattr(error, "code", None)
            return status, envelope(str(error), name, own or code, param)
    return 500, envelope("the server failed; its log says where", "server_error", "internal_error")


def failure(error: Exception) -> JSONResponse:
    """The response for an error."""
    status, body = describe(error)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, Busy) else None
    return JSONResponse(body, status, headers)


def _is_field(part: str) -> bool:
    """Pydantic's places name the alternatives of a union too: `stop.constrained-str`, `input.list[…].ScanMessage`."""
    return part.isdecimal() or (part.isidentifier() and part == part.lower() and part not in ("str", "int"))


def invalid(errors: Sequence[Mapping[str, Any]]) -> JSONResponse:
    """The response for a body that does not have the right fields; it never quotes the body."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    param = ".".join(part for part in place if _is_field(part)) or None
    if first["type"] == "extra_forbidden":
        return JSONResponse(
            envelope(
                f"{param!r} is not offered by this server; leave it out", "invalid_request_error", "unsupported", param
            ),
            400,
        )
    reason = str(first["msg"]).removeprefix("Value error, ")
    message = f"{param}: {reason}" if param else reason
    return JSONResponse(envelope(message, "invalid_request_error", "invalid_value", param), 400)
