"""
title: anydepth
description: Lets an anydepth server read every request and every answer before it is shown.
requirements: httpx
required_open_webui_version: 0.12.0
version: 1.0
"""

# An answer is held back and leaves window by window, each once a scan of the conversation covers it. A filter cannot
# end a stream, and an exception in it only drops a chunk: after a block, every later chunk is emptied, and the refusal
# is put in once. What cannot be scanned is not shown.

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import httpx
from pydantic import BaseModel, Field

TEXTS = ("reasoning_content", "reasoning", "thinking", "content", "refusal")
"""Fields of a delta that have text; with `tool_calls` they are all that leaves."""

WITHOUT_TEXT = {"sources", "usage", "error", "selected_model_id", "timings", "id", "object", "created", "model", "done"}
"""Fields of an event that have no text of a model."""
NOTICES = ("status", "source", "citation", "notification")
"""Events of Open WebUI's own that have none either."""

Message = dict[str, str]
Event = dict[str, Any]


class Blocked(Exception):
    """A request or an answer that does not pass; the message is for the user."""


@dataclass
class Stream:
    """One answer on its way: what was asked, what has come of it, and what of that is held back."""

    asked: list[Message] | None = None
    parts: dict[Any, str] = field(default_factory=dict)
    held: list[Event] = field(default_factory=list)
    grown: int = 0
    calling: bool = False
    ended: bool = False
    blocked: bool = False
    shown: bool = False

    def take(self, event: Event) -> None:
        """Take in an event; Blocked if it has what a scan cannot read."""
        self.held.append(event)
        for choice in event["choices"]:
            delta = choice.get("delta") or {}
            if "message" in choice or delta.get("images") or delta.get("audio"):
                raise Blocked("the answer has a part that is no text")
            for name in TEXTS:
                self._add((choice.get("index", 0), name), delta.get(name))
            for place, call in enumerate(delta.get("tool_calls") or []):
                self.calling, function = True, call.get("function") or {}
                for name in ("name", "arguments"):
                    self._add((choice.get("index", 0), call.get("index", place), name), function.get(name))
            self.ended = self.ended or choice.get("finish_reason") is not None

    def _add(self, key: Any, text: Any) -> None:
        text = text or ""
        text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
        self.parts[key], self.grown = self.parts.get(key, "") + text, self.grown + len(text)

    @property
    def conversation(self) -> list[Message]:
        """What was asked, with the answer so far."""
        return with_answer(self.asked or [], "\n\n".join(part for part in self.parts.values() if part))

    def release(self) -> Event:
        """The events that were held, as one."""
        held, self.held, self.grown = self.held, [], 0
        self.shown = self.shown or any(part.strip() for part in self.parts.values())
        return merged(held)


class Filter:
    """Open WebUI's filter; make it global, and give it no toggle."""

    class Valves(BaseModel):
        """What the administrator sets."""

        priority: int = Field(default=1000, description="Later than other filters: what they add is read as well")
        api_base: str = Field(default="http://127.0.0.1:8000/v1", description="The anydepth server, with /v1")
        api_key: str = Field(default="", description="Its key")
        window_chars: int = Field(default=400, ge=0, description="Characters that are held back; 0: the whole answer")
        timeout: float = Field(default=30, gt=0, description="Seconds for one scan")
        refusal: str = Field(default="I can't help with that.", description="Stands in place of what is not shown")

    def __init__(self) -> None:
        self.valves = self.Valves()
        self._streams: WeakKeyDictionary[Any, Stream] = WeakKeyDictionary()

    async def inlet(self, body: dict[str, Any], __request__: Any = None) -> dict[str, Any]:
        """Scan the request; an exception is shown to the user, and no model is called."""
        if body.get("stream") is not True:
            raise Blocked("anydepth: only streamed answers can be held back; switch streaming on")
        return await self.request(body, __request__)

    async def request(self, body: dict[str, Any], __request__: Any = None) -> dict[str, Any]:
        """Scan what a model is about to be asked, with what was retrieved for it and what tools gave back."""
        if __request__ is None:
            raise Blocked("anydepth: this version of Open WebUI does not tell requests apart")
        known, asked = self._streams.get(__request__), conversation(body["messages"])
        if known is None or known.asked != asked or known.blocked:
            await self._scan(asked)
        self._streams[__request__] = Stream(asked)
        return body

    async def stream(self, event: Event, __request__: Any = None, __event_emitter__: Any = None) -> Event:
        """Hold an event back until a scan covers it; an empty event is not shown."""
        if event.keys() <= WITHOUT_TEXT or (event.get("event") or {}).get("type") in NOTICES:
            return event
        stream = self._streams.get(__request__) if __request__ is not None else None
        if stream is None:
            stream = Stream()
            if __request__ is not None:
                self._streams[__request__] = stream
        if stream.blocked:
            return {}
        try:
            return await self._next(stream, event)
        except Exception as error:  # an exception would only drop this one event
            stream.blocked, reason = True, str(error) if isinstance(error, Blocked) else "anydepth: an error"
            stream.held.clear()
            if __event_emitter__ is not None:
                await __event_emitter__({"type": "status", "data": {"description": reason, "done": True}})
            text = ("\n\n" if stream.shown else "") + self.valves.refusal
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": "content_filter"}
            return {"object": "chat.completion.chunk", "choices": [choice]}

    async def outlet(self, body: dict[str, Any], __request__: Any = None) -> dict[str, Any]:
        """Scan an answer that did not come as a stream, before it is stored; what was blocked is a refusal there."""
        stream = self._streams.get(__request__) if __request__ is not None else None
        if stream is not None and (stream.ended or stream.blocked):
            return body
        try:
            await self._scan(conversation(body["messages"]))
        except Exception:
            body["messages"][-1] = {**body["messages"][-1], "content": self.valves.refusal, "output": []}
        return body

    async def _next(self, stream: Stream, event: Event) -> Event:
        if stream.asked is None:
            raise Blocked("anydepth: an answer to a request that was not scanned")
        if "choices" not in event:
            raise Blocked("anydepth: only streams of chat completions can be read, and this is another")
        if not event["choices"]:
            return event
        stream.take(event)
        window = self.valves.window_chars
        full = bool(window) and stream.grown >= window and not stream.calling
        if not (full or stream.ended):
            return {}
        await self._scan(stream.conversation)
        return stream.release()

    async def _scan(self, conversation: Sequence[Message]) -> None:
        """Blocked unless the server says that the conversation is fine."""
        key = self.valves.api_key
        options: dict[str, Any] = {"timeout": self.valves.timeout}
        options["headers"] = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            async with httpx.AsyncClient(**options) as server:
                url = f"{self.valves.api_base.rstrip('/')}/moderations"
                reply = await server.post(url, json={"input": list(conversation)})
            reply.raise_for_status()
            (result,) = reply.json()["results"]
            fine = result["flagged"] is False
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise Blocked("anydepth: the guard cannot be reached, or cannot read this") from error
        if not fine:
            raise Blocked("anydepth: the conversation was flagged as harmful")


def conversation(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The messages as the server reads them, a role and a text each; Blocked if one has a part that is no text."""
    found: list[Message] = []
    for message in messages:
        texts = [message.get("reasoning_content") or "", *_texts(message.get("content"))]
        for call in message.get("tool_calls") or []:
            function = call.get("function") or {}
            texts += [function.get("name") or "", function.get("arguments") or ""]
        if message.get("output") and not any(texts):
            raise Blocked("anydepth: a message has its text where it cannot be read")
        role = "system" if message["role"] == "developer" else message["role"]
        found.append({"role": role, "content": "\n\n".join(text for text in texts if text)})
    return found


def _texts(content: Any) -> list[str]:
    if content is None or isinstance(content, str):
        return [content or ""]
    if any(part.get("type") != "text" for part in content):
        raise Blocked("anydepth: only text can be scanned, and a message has another part")
    return [part["text"] for part in content]


def with_answer(asked: Sequence[Message], answer: str) -> list[Message]:
    """The conversation with the answer; where the last message is the assistant's, the two are one message."""
    if not asked or asked[-1]["role"] != "assistant":
        return [*asked, {"role": "assistant", "content": answer}]
    return [*asked[:-1], {"role": "assistant", "content": asked[-1]["content"] + answer}]


def merged(events: Sequence[Event]) -> Event:
    """One event in place of several; of deltas only what was read leaves."""
    choices: dict[int, dict[str, Any]] = {}
    calls: dict[tuple[int, Any], dict[str, Any]] = {}
    for event in events:
        for choice in event["choices"]:
            index, delta = choice.get("index", 0), choice.get("delta") or {}
            into = choices.setdefault(index, {"index": index, "delta": {}, "finish_reason": None})
            into["finish_reason"] = choice.get("finish_reason") or into["finish_reason"]
            if delta.get("role"):
                into["delta"]["role"] = delta["role"]
            for name in TEXTS:
                if delta.get(name):
                    into["delta"][name] = into["delta"].get(name, "") + delta[name]
            for place, call in enumerate(delta.get("tool_calls") or []):
                key = (index, call.get("index", place))
                if key not in calls:
                    calls[key] = {**call, "function": {"name": "", "arguments": ""}}
                    into["delta"].setdefault("tool_calls", []).append(calls[key])
                for name in ("name", "arguments"):
                    calls[key]["function"][name] += (call.get("function") or {}).get(name) or ""
    return {**events[-1], "choices": list(choices.values())}
