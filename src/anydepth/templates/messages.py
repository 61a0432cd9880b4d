"""Bring chat messages to one shape, and split off what the client has written of the answer."""

import json
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from anydepth.errors import PromptError

_THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # the names that Transformers knows


def normal(messages: Any) -> list[dict[str, Any]]:
    """Return `messages` as plain dicts whose contents are text, PromptError if they are not messages."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
        if not messages[0]["content"].strip():
            raise PromptError("the prompt is empty; write a user message")
    if not isinstance(messages, Sequence) or isinstance(messages, bytes):
        raise PromptError(f"messages are a {type(messages).__name__}; give a list of messages, or one text")
    if not messages:
        raise PromptError("messages are empty; give at least one user message")
    return [_normal_message(index, message) for index, message in enumerate(messages)]


def _normal_message(index: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise PromptError(f'message {index} is {reprlib.repr(message)}; write {{"role": ..., "content": ...}}')
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise PromptError(f"message {index} has the role {role!r}; give it one, e.g. user")
    if content is None:
        if not message.get("tool_calls"):
            raise PromptError(f"message {index} (role {role}) has no content; give it a text")
        return dict(message)
    return {**message, "content": content if isinstance(content, str) else _text_of_parts(index, content)}


def _text_of_parts(index: int, content: Any) -> str:
    """Return the text of a content list as OpenAI writes it; most templates take text only."""
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise PromptError(f"message {index} has a content of type {type(content).__name__}; give it a text")
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise PromptError(
                f"message {index} has the content part {reprlib.repr(part)}; only text parts can be guarded"
            )
    return "\n".join(part["text"] for part in content)


def split_prefill(messages: list[dict[str, Any]], prefill: Any) -> tuple[list[dict[str, Any]], str]:
    """Return the messages to answer and the assistant's prefill (empty if there is none), given in either way.

    Raises:
        PromptError: It is given both ways, is no text, or leaves no message to answer.
    """
    if prefill is not None and not isinstance(prefill, str):
        raise PromptError(f"prefill is a {type(prefill).__name__}; give a text")
    if messages[-1]["role"] != "assistant":
        return messages, prefill or ""
    *history, last = messages
    if last.get("tool_calls"):
        raise PromptError("the last message is a tool call of the assistant; append the tool's result")
    if thought := next((key for key in _THOUGHTS if last.get(key)), None):
        raise PromptError(f"the last message has a {thought!r}, which cannot be continued; write it into its content")
    if last["content"] and prefill:
        raise PromptError("a prefill is given twice: as prefill= and as the last message, of role assistant; drop one")
    if not history:
        raise PromptError("the only message is the assistant's; put a user message before it")
    return history, last["content"] or prefill or ""


def other_arguments(messages: Sequence[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Give the messages with the arguments of tool calls in the forms that they do not have: as JSON text, as objects.

    OpenAI writes text; most chat templates take the object, some join the text to other text.
    """
    for form in (_as_text, _as_object):
        other = [_with_arguments(message, form) for message in messages]
        if other != list(messages):
            yield other


def _with_arguments(message: Mapping[str, Any], form: Callable[[Any], Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not isinstance(calls, Sequence) or not all(isinstance(call, Mapping) for call in calls):
        return dict(message)
    return {**message, "tool_calls": [_with_form(call, form) for call in calls]}


def _with_form(call: Mapping[str, Any], form: Callable[[Any], Any]) -> dict[str, Any]:
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _with_form(call["function"], form)}
    return {**call, "arguments": form(call["arguments"])} if "arguments" in call else dict(call)


def _as_text(arguments: Any) -> Any:
    if isinstance(arguments, str):
        return arguments
    try:
        return json.dumps(arguments, ensure_ascii=False)
    except (TypeError, ValueError):  # not JSON: the template's own error says more
        return arguments


def _as_object(arguments: Any) -> Any:
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return arguments
