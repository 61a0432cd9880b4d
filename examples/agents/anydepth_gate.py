"""Ask an anydepth server whether a tool call may be run. Whatever is no clear yes is a no."""

import asyncio
import json
import os
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

URL, KEY = "ANYDEPTH_URL", "ANYDEPTH_API_KEY"
"""Environment variables: where the server is, and its API key if it wants one."""


@dataclass(frozen=True)
class Decision:
    """Whether a call may be run, and why in a sentence; `report` is the server's, None if there is none."""

    allowed: bool
    why: str
    report: Mapping[str, Any] | None = None


class Gate:
    """The gate of one server.

    Args:
        url: Where the server is; by default `$ANYDEPTH_URL`, else http://127.0.0.1:8000.
        key: Its API key; by default `$ANYDEPTH_API_KEY`.
        timeout: Seconds to wait for an answer.
    """

    def __init__(self, url: str | None = None, *, key: str | None = None, timeout: float = 30) -> None:
        self._url = (url or os.environ.get(URL) or "http://127.0.0.1:8000").rstrip("/") + "/v1/gate"
        self._key, self._timeout = key or os.environ.get(KEY), timeout

    def decide(
        self,
        messages: Sequence[Mapping[str, Any]],
        name: str,
        arguments: Mapping[str, Any] | str,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Decision:
        """Whether the tool may be called with these arguments, in this conversation; never raises.

        Args:
            messages: The conversation as OpenAI writes it. A last message of the assistant is the one with the call.
            name: Name of the tool.
            arguments: Its arguments, or their JSON text.
            tools: The tools as OpenAI describes them, if the model was told of them.
        """
        try:
            reply = self._ask(messages, name, arguments, tools)
            return Decision(reply["allowed"] is True, str(reply["why"]), reply["anydepth"])
        except Exception as error:  # not judged is not allowed: unreachable, refused, or no answer of a gate
            return Decision(False, f"the call of {name} was not judged ({_said(error)}), so it is not run")

    async def adecide(self, *arguments: Any, **options: Any) -> Decision:
        """`decide` for asyncio: the request is made in a thread."""
        return await asyncio.to_thread(self.decide, *arguments, **options)

    def _ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        name: str,
        arguments: Mapping[str, Any] | str,
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> dict[str, Any]:
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        call = {"type": "function", "function": {"name": name, "arguments": text}}
        body = {"messages": list(messages), "tool_call": call, "tools": list(tools) if tools else None}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self._timeout) as reply:
            return json.load(reply)


def _said(error: Exception) -> str:
    """Why there is no judgement: the server's own words, if it gave some."""
    try:
        return str(json.load(error)["error"]["message"])  # type: ignore[arg-type]  # an HTTPError is the reply
    except Exception:
        return f"{type(error).__name__}: {error}"
