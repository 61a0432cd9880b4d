"""Take in the body of a request, and pass a request on to vLLM with another one."""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope

from anydepth.errors import BadRequest
from anydepth.server.http.disconnect import ClientGone
from anydepth.server.http.http_errors import check_json, failure, refusal
from anydepth.vllm.front.request import read_body

T = TypeVar("T")


async def taken_in(scope: Scope, receive: Receive, read: Callable[[dict[str, Any]], T]) -> T | Response:
    """What `read` makes of the request's body, which is JSON; the response where it cannot be taken.

    Raises:
        ClientGone: The client has closed the connection.
    """
    request = Request(scope, receive)
    try:
        raw = await request.body()
        check_json(request)
        return read(read_body(raw))
    except ClientDisconnect as error:
        raise ClientGone from error
    except BadRequest as error:
        return failure(error)
    except HTTPException as error:
        return refusal(error.status_code, error.detail, "body_too_large")


def passed_on(
    scope: Scope, receive: Receive, body: Mapping[str, Any], request_id: str, path: str | None = None
) -> tuple[Scope, Receive]:
    """The request as vLLM is to see it: with this body, at this path, and with our id in it.

    A client's own id could be another response's, in the audit trail too.
    """
    raw = json.dumps(body, allow_nan=False).encode()
    scope = {**scope, "headers": list(scope["headers"])}
    if path is not None:
        scope["path"] = scope.get("root_path", "") + path
        scope["raw_path"] = scope["path"].encode()
    headers = MutableHeaders(scope=scope)
    for name in ("accept-encoding", "transfer-encoding"):
        del headers[name]
    headers["X-Request-Id"], headers["Content-Length"] = request_id, str(len(raw))
    return scope, _after(raw, receive)


def _after(raw: bytes, receive: Receive) -> Receive:
    """Give the rewritten body, then whatever the client does."""
    whole = iter([{"type": "http.request", "body": raw, "more_body": False}])

    async def again() -> Message:
        return next(whole, None) or await receive()

    return again
