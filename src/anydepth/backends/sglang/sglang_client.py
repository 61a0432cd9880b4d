"""Speak HTTP with an SGLang server."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from anydepth.errors import ConfigError, ModelError
from anydepth.reasons import LONGEST, reason

logger = logging.getLogger(__name__)


class SglangClient:
    """Sends requests to one SGLang server; several threads may use it at once.

    Args:
        url: Where the server listens, e.g. `http://127.0.0.1:30000`.
        api_key: The server's `--api-key`, if it has one.
        timeout: Seconds to wait for the server's next bytes, and for a connection.

    Raises:
        ConfigError: The URL is not one of http or https.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 120.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"url is {url!r}; write it as http://HOST:PORT")
        self.url = url.rstrip("/")
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)  # a connection for each answer
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, limits=limits)

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at `path`; ModelError if there is none."""
        return self._object(path, lambda: self._http.get(path))

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that answers `body`; ModelError with the server's reason if it refuses."""
        return self._object(path, lambda: self._http.post(path, json=dict(body)))

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The JSON objects of a stream of server-sent events, as they come; closing the iterator hangs up.

        Raises:
            ModelError: The server refuses, reports an error within the stream, or the stream breaks off.
        """
        with self._talking(path), self._http.stream("POST", path, json=dict(body)) as reply:
            if reply.status_code != httpx.codes.OK:
                reply.read()
                raise self._refusal(path, reply)
            for line in reply.iter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                piece = self._parsed(path, data)
                if "error" in piece:
                    raise self._failure(path, _said(piece))
                yield piece
        raise self._failure(path, "the stream broke off")

    def abort(self, request_id: str) -> None:
        """Ask the server to stop a request. A server that refuses does so anyway once the connection is closed."""
        try:
            reply = self._http.post("/abort_request", json={"rid": request_id})
        except httpx.HTTPError as error:
            logger.warning("cannot abort a request at %s: %s", self.url, reason(error))
            return
        if reply.status_code != httpx.codes.OK:
            logger.info("%s does not take /abort_request (HTTP %d)", self.url, reply.status_code)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def _object(self, path: str, ask: Any) -> dict[str, Any]:
        with self._talking(path):
            reply = ask()
        if reply.status_code != httpx.codes.OK:
            raise self._refusal(path, reply)
        return self._parsed(path, reply.text)

    def _parsed(self, path: str, text: str) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._failure(path, f"it answers {text[:80]!r}, which is no JSON object; is it an SGLang server?")
        return found

    @contextmanager
    def _talking(self, path: str) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise self._failure(path, f"{type(error).__name__}: {reason(error)}; does the server run?") from error

    def _refusal(self, path: str, reply: httpx.Response) -> ModelError:
        try:
            said = _said(json.loads(reply.text))
        except ValueError:
            said = reply.text[:LONGEST]
        hint = "; pass api_key" if reply.status_code in (401, 403) else ""
        return self._failure(path, f"HTTP {reply.status_code}: {said}{hint}")

    def _failure(self, path: str, why: str) -> ModelError:
        return ModelError(f"the SGLang server at {self.url} does not answer {path}: {why}")


def _said(body: Any) -> str:
    """What an error reply says; the server writes it in three forms."""
    found = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(found, dict):
        found = found.get("message", found)
    return str(found)[:LONGEST]
