"""Read the tool calls that a model wrote; see `anydepth.templates.call_formats`."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from anydepth.templates.call_formats import ToolFormat


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call: the function's name and its arguments as JSON text."""

    name: str
    arguments: str


def parse_calls(text: str, row: ToolFormat, offered: Collection[str]) -> list[ToolCall]:
    """The calls in the text between `open` and `close`; empty if it is not entirely calls.

    The arguments of a call are a JSON object: clients run what they are given, half of one too. Bare JSON is a call
    only if it names one of the `offered` tools: it may be meant as an answer.
    """
    text = text.strip().removeprefix(row.prefix).strip() if row.prefix else text.strip()
    if row.split:
        return _named_calls(text, row)
    decoder = json.JSONDecoder()
    calls: list[ToolCall] = []
    while text:
        try:
            value, end = decoder.raw_decode(text)
        except (ValueError, RecursionError):
            return []
        for each in value if isinstance(value, list) else [value]:
            call = _call(each, row)
            if call is None or (not row.open and call.name not in offered):
                return []
            calls.append(call)
        text = text[end:].lstrip().removeprefix(";").lstrip()
    return calls


def _call(value: Any, row: ToolFormat) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = whole_arguments(next((value[key] for key in row.arguments if key in value), None))
    return None if arguments is None else ToolCall(value["name"], arguments)


def whole_arguments(value: Any) -> str | None:
    """The arguments of a call as the JSON text of an object, or None if they are none; no arguments are `{}`."""
    if isinstance(value, str) and value.strip():  # some models write the JSON text itself
        try:
            return value if isinstance(json.loads(value), dict) else None
        except (ValueError, RecursionError):
            return None
    if value is None or isinstance(value, str):
        return "{}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else None


def whole_calls(calls: Sequence[dict[str, Any]], *, doubted: bool) -> tuple[list[dict[str, Any]], str]:
    """The calls of a message that are whole, and the others as text.

    Args:
        calls: What OpenAI calls `tool_calls`.
        doubted: Whether the answer may have ended in the middle of the last call: it is text then, as whole as it
            looks.
    """
    whole: list[dict[str, Any]] = []
    rest: list[str] = []
    for place, call in enumerate(calls, start=1):
        function = call.get("function") or {}
        name, given = function.get("name"), function.get("arguments")
        arguments = None if doubted and place == len(calls) else whole_arguments(given)
        if name and arguments is not None:
            whole.append({**call, "function": {**function, "arguments": arguments}})
        else:
            rest.append(f'{{"name": {json.dumps(name or "", ensure_ascii=False)}, "arguments": {given or ""}')
    return whole, "\n".join(rest)


def _named_calls(text: str, row: ToolFormat) -> list[ToolCall]:
    calls = []
    for part in text.split(row.open):
        name, found, arguments = part.partition(row.split)
        whole = whole_arguments(arguments.strip())
        if whole is None or not arguments.strip() or not found or not name.strip():
            return []
        calls.append(ToolCall(name.strip(), whole))
    return calls
