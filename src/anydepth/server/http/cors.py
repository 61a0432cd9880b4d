"""Which pages of other origins a browser may let use this server."""

import functools
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Scope, Send

from anydepth.server.http.http_errors import refusal


class Cors:
    """Answers what browsers ask before they send a page's request, and marks the responses that a page may read.

    Args:
        origins: Origins such as `https://chat.example.org`; `*` is every one, none lets no page in.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        self._on = bool(origins)
        self._rules = CORSMiddleware(
            Response(),  # stands for the application, which the middleware's own methods do not need
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("X-Request-Id", "Retry-After", "X-Should-Retry", "X-Anydepth"),
            allow_private_network="*" not in origins,  # a page of the internet that asks this machine or its network
        )

    def preflight(self, scope: Scope) -> Response | None:
        """The response to a browser that asks whether a page may send a request; None for any other request.

        It has no API key: browsers send none with it.
        """
        headers = Headers(scope=scope)
        if scope["method"] != "OPTIONS" or not {"origin", "access-control-request-method"} <= set(headers):
            return None
        origin = headers["origin"]
        if not self._rules.is_allowed_origin(origin):
            return refusal(
                403,
                f"pages of {origin[:100]!r} may not use this server; its operator can let them with "
                "[http] cors_origins in guard.toml",
                "origin_not_allowed",
            )
        response = self._rules.preflight_response(headers)
        if response.status_code != 200:
            reason = bytes(response.body).decode()
            return refusal(403, f"{reason}; pages of other origins may use GET and POST", "origin_not_allowed")
        return response

    def sender(self, scope: Scope, send: Send) -> Send:
        """A `send` that marks a response as readable for pages that may read it."""
        if not self._on:
            return send
        return functools.partial(self._rules.send, send=send, request_headers=Headers(scope=scope))
