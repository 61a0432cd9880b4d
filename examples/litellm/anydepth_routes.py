"""What the guardrail reads of the routes that it knows: the conversation of a request, and an answer as it comes.

Each reader has `turns`, the answers so far by their number; `unread`, bytes of an event that is not whole yet; and
raises Unreadable, or what a malformed mapping raises, for what it cannot read.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

ELSEWHERE = ("previous_response_id", "conversation", "prompt", "background")
"""Fields of /v1/responses by which a part of the conversation, or the answer, is kept where no scan sees it."""

Message = dict[str, Any]


PARTS = {"output_text": "text", "refusal": "refusal", "reasoning_text": "text", "summary_text": "text"}
"""Parts of an item of /v1/responses -> the field that has the text."""
TEXTS = {
    "output_text": "output_text",
    "refusal": "refusal",
    "reasoning_text": "reasoning_text",
    "reasoning_summary_text": "summary_text",
    "function_call_arguments": "arguments",
}
"""Events of /v1/responses that bring text -> the part that it belongs to."""


class Unreadable(Exception):
    """What a scan could not read; the message says what it is."""


class Turn:
    """What a model wrote as one answer: thoughts, text and calls, each under a key, in their order."""

    def __init__(self) -> None:
        self.parts: dict[Hashable, str] = {}
        self.calling = False

    def add(self, key: Hashable, text: str | None) -> int:
        """Take in the next piece of a part; returns by how many characters it grew."""
        self.parts[key] = self.parts.get(key, "") + (text or "")
        return len(text or "")

    def whole(self, key: Hashable, text: str | None) -> int:
        """Take in a part that is said to be whole; what differs from its pieces is text as well."""
        return 0 if text == self.parts.get(key, "") else self.add(key, text)

    @property
    def content(self) -> str:
        """All of it as the text to scan."""
        return "\n\n".join(part for part in self.parts.values() if part)


class Chat:
    """Reads /v1/chat/completions."""

    def __init__(self) -> None:
        self.turns: dict[int, Turn] = {}
        self.unread = b""

    @staticmethod
    def conversation(data: Mapping[str, Any]) -> list[Message]:
        """The request's messages."""
        return [_message(each["role"], _chat_texts(each)) for each in data.get("messages") or []]

    def take(self, item: Any) -> int:
        """Take in an answer or a chunk of one; returns by how many characters it grew."""
        return sum(self._choice(choice) for choice in item.choices)

    def _choice(self, choice: Any) -> int:
        turn = self.turns.setdefault(choice.index or 0, Turn())
        said = choice.delta if hasattr(choice, "delta") else choice.message
        if getattr(said, "audio", None) or getattr(said, "images", None):
            raise Unreadable("the answer has sound or images in it")
        grown = sum(turn.add(name, getattr(said, name, None)) for name in ("reasoning_content", "content", "refusal"))
        blocks = getattr(said, "thinking_blocks", None) or []  # the same thoughts, as Anthropic writes them
        if not getattr(said, "reasoning_content", None):
            grown += sum(turn.add("reasoning_content", block.get("thinking")) for block in blocks)
        old = getattr(said, "function_call", None)  # the form before tool_calls
        calls = [(getattr(call, "index", None), call.function) for call in getattr(said, "tool_calls", None) or []]
        for place, (index, function) in enumerate([*calls, *([(-1, old)] if old else [])]):
            turn.calling = True
            key = place if index is None else index
            grown += turn.add((key, "name"), function.name) + turn.add((key, "arguments"), function.arguments)
        return grown


class Messages:
    """Reads /v1/messages, Anthropic's: an answer is a mapping, a stream is the bytes of its events."""

    def __init__(self) -> None:
        self.turns = {0: Turn()}
        self.unread = b""

    @staticmethod
    def conversation(data: Mapping[str, Any]) -> list[Message]:
        """The request's instructions and messages."""
        system = [_message("system", _texts(data["system"]))] if data.get("system") else []
        return system + [_message(each["role"], _texts(each["content"])) for each in data.get("messages") or []]

    def take(self, item: Any) -> int:
        """Take in an answer, or bytes of a stream; an event that is not whole yet stays in `unread`."""
        if isinstance(item, Mapping):
            return sum(self._block(place, block) for place, block in enumerate(item["content"]))
        self.unread += item.encode() if isinstance(item, str) else item
        *events, self.unread = self.unread.replace(b"\r\n", b"\n").split(b"\n\n")
        return sum(self._event(event) for event in map(_event_data, events) if event)

    def _event(self, event: Mapping[str, Any]) -> int:
        kind = event["type"]
        if kind == "message_start":
            return self.take(event["message"])
        if kind == "content_block_start":
            return self._block(event["index"], event["content_block"])
        if kind == "content_block_delta":
            return self._delta(event["index"], event["delta"])
        if kind in ("content_block_stop", "message_delta", "message_stop", "ping", "error"):
            return 0
        raise Unreadable(f"the answer has an event of type {kind}")

    def _delta(self, index: int, delta: Mapping[str, Any]) -> int:
        names = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
        if delta["type"] in ("signature_delta", "citations_delta"):
            return 0
        if delta["type"] not in names:
            raise Unreadable(f"the answer has a part of type {delta['type']}")
        return self.turns[0].add(index, delta[names[delta["type"]]])

    def _block(self, index: int, block: Mapping[str, Any]) -> int:
        if block["type"] == "tool_use":
            self.turns[0].calling = True
            grown = self.turns[0].add((index, "name"), block["name"])
            return grown + self.turns[0].add(index, _json(block["input"]) if block["input"] else "")
        return self.turns[0].add(index, "\n\n".join(_texts([block])))


class Responses:
    """Reads /v1/responses: events name the place of a text, and repeat it when it is whole."""

    def __init__(self) -> None:
        self.turns = {0: Turn()}
        self.unread = b""

    @staticmethod
    def conversation(data: Mapping[str, Any]) -> list[Message]:
        """The request's instructions and items."""
        if kept := [name for name in ELSEWHERE if data.get(name)]:
            raise Unreadable(f"{kept[0]} keeps a part of the conversation elsewhere: send the whole of it")
        first = [_message("system", [data["instructions"]])] if data.get("instructions") else []
        items = [{"role": "user", "content": data["input"]}] if isinstance(data["input"], str) else data["input"]
        messages: list[Message] = []
        for each in first + [_item(item) for item in items]:
            if messages and messages[-1]["role"] == each["role"] == "assistant":
                messages[-1] = _message("assistant", [messages[-1]["content"], each["content"]])
            else:
                messages.append(each)
        return messages

    def take(self, item: Any) -> int:
        """Take in an answer, or an event of a stream."""
        event = item if isinstance(item, Mapping) else item.model_dump(mode="json", warnings=False)
        if "output" in event:
            return sum(self._item(place, each) for place, each in enumerate(event["output"] or []))
        *_, what, how = ("", *event["type"].removeprefix("response.").split("."))
        if "response" in event:
            return self.take(event["response"])
        if what == "output_item":
            return self._item(event["output_index"], event["item"])
        if "part" in event:
            return self._part(event["output_index"], _place(event), event["part"])
        if what in TEXTS:
            key = (event["output_index"], TEXTS[what], _place(event))
            if how == "delta":
                return self.turns[0].add(key, event["delta"])
            names = ("text", "refusal", "arguments")
            return self.turns[0].whole(key, next(event[name] for name in names if name in event))
        if event["type"] in ("error", "response.output_text.annotation.added"):
            return 0
        raise Unreadable(f"the answer has an event of type {event['type']}")

    def _item(self, index: int, item: Mapping[str, Any]) -> int:
        if item["type"] == "function_call":
            self.turns[0].calling = True
            grown = self.turns[0].whole((index, "name"), item["name"])
            return grown + self.turns[0].whole((index, "arguments", 0), item.get("arguments") or "")
        if item["type"] not in ("message", "reasoning"):
            raise Unreadable(f"the answer has an item of type {item['type']}")
        lists = [item.get(name) or [] for name in ("summary", "content")]
        return sum(self._part(index, place, part) for parts in lists for place, part in enumerate(parts))

    def _part(self, index: int, place: int, part: Mapping[str, Any]) -> int:
        if part["type"] not in PARTS:
            raise Unreadable(f"the answer has a part of type {part['type']}")
        return self.turns[0].whole((index, part["type"], place), part[PARTS[part["type"]]])


Reader = Chat | Messages | Responses
ROUTES: Mapping[str, type[Reader]] = {
    "completion": Chat, "acompletion": Chat, "anthropic_messages": Messages, "responses": Responses,
    "aresponses": Responses,
}  # fmt: skip


def _message(role: str, texts: Sequence[str]) -> Message:
    return {"role": "system" if role == "developer" else role, "content": "\n\n".join(text for text in texts if text)}


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _chat_texts(message: Mapping[str, Any]) -> list[str]:
    calls = [call["function"] for call in message.get("tool_calls") or []]
    calls += [message["function_call"]] if message.get("function_call") else []
    first, last = message.get("reasoning_content") or "", message.get("refusal") or ""
    said = [text for call in calls for text in (call["name"], call["arguments"])]
    return [first, *_texts(message.get("content")), last, *said]


def _texts(content: Any) -> list[str]:
    """The texts of a content: a text, or parts as any of the three routes writes them."""
    if content is None or isinstance(content, str):
        return [content or ""]
    texts: list[str] = []
    for part in content:
        kind = part["type"]
        if kind in ("text", "input_text", "output_text", "summary_text", "reasoning_text"):
            texts.append(part["text"])
        elif kind in ("refusal", "thinking"):
            texts.append(part[kind])
        elif kind == "tool_use":
            texts += [part["name"], _json(part["input"])]
        elif kind == "tool_result":
            texts += _texts(part.get("content"))
        elif kind != "redacted_thinking":  # encrypted: no client can read it
            raise Unreadable(f"only text can be scanned, and a part is of type {kind}")
    return texts


def _item(item: Mapping[str, Any]) -> Message:
    """An item of /v1/responses as a message."""
    kind = item.get("type") or "message"
    if kind == "message":
        return _message(item["role"], _texts(item["content"]))
    if kind == "function_call":
        return _message("assistant", [item["name"], item["arguments"]])
    if kind == "function_call_output":
        return _message("tool", _texts(item["output"]))
    if kind == "reasoning":
        return _message("assistant", [*_texts(item.get("summary")), *_texts(item.get("content"))])
    raise Unreadable(f"only text can be scanned, and an item is of type {kind}")


def _event_data(event: bytes) -> Any:
    """The data of a server-sent event, None if it has none."""
    lines = [line[5:] for line in event.decode().split("\n") if line.startswith("data:")]
    data = "\n".join(lines).strip()
    return json.loads(data) if data and data != "[DONE]" else None


def _place(event: Mapping[str, Any]) -> int:
    return event.get("content_index", event.get("summary_index", 0))
