"""Conversations that every template is tried with, and how it writes them in the end."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages to answer, and the tools that may be called for it."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()


def _said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


_SKY = _said("user", "Why is the sky blue?")
_RAIN = (
    _said("user", "Does it rain in Paris?"),
    _said(
        "assistant",
        "",
        tool_calls=[
            {"type": "function", "id": "abcdefghi", "function": {"name": "weather", "arguments": {"city": "Lutetia"}}}
        ],
    ),
    _said("tool", "Showers until noon.", name="weather", tool_call_id="abcdefghi"),
)

CONVERSATIONS = {
    "one message": Conversation((_SKY,)),
    "two questions": Conversation((_SKY, _said("assistant", "Rayleigh scattering."), _said("user", "And at dusk?"))),
    "system": Conversation((_said("system", "Answer briefly."), _SKY)),
    "tools": Conversation(_RAIN[:1], (WEATHER,)),
    "tool result": Conversation(_RAIN, (WEATHER,)),
    "after a tool": Conversation((*_RAIN, _said("assistant", "It does."), _said("user", "And in Rome?")), (WEATHER,)),
}


def written(tokenizer: Any, conversation: Conversation, **kwargs: Any) -> tuple[str, list[int]] | None:
    """Return the prompt as `apply_chat_template` writes it, or None if the template takes it in no shape.

    Some templates take contents as parts only, want a list of tools, or join the arguments of a call to text. The first
    shape counts that the template renders with every message's text in it.
    """
    for messages, tools in _shapes(conversation):
        options = {"tools": tools, "add_generation_prompt": True, **kwargs}
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
            ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
        except Exception:  # whatever the template's author raises
            continue
        if all(message["content"] in text for message in conversation.messages):
            return text, list(ids)
    return None


def _shapes(conversation: Conversation) -> Iterator[tuple[list[Any], list[Any] | None]]:
    plain = [dict(message) for message in conversation.messages]
    joined = [_with_text_arguments(message) for message in plain]
    for messages in (plain, joined, _in_parts(plain), _in_parts(joined)):
        for tools in (list(conversation.tools) or None, list(conversation.tools)):
            yield messages, tools


def _in_parts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def _with_text_arguments(message: Mapping[str, Any]) -> dict[str, Any]:
    if not message.get("tool_calls"):
        return dict(message)
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}
