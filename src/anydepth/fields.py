"""Read the fields of one record: text, messages and labels, the same wherever a record comes from.

Errors name the column. They never quote prompts or answers, which may be harmful text.
"""

import math
import reprlib
from collections.abc import Mapping
from typing import Any, Literal

from anydepth.errors import RecordError
from anydepth.jsonl import read_value

Label = Literal["harmful", "benign"]

LABELS: Mapping[str, Label | None] = {
    "harmful": "harmful",
    "unsafe": "harmful",
    "benign": "benign",
    "safe": "benign",
    "harmless": "benign",
}
"""Label values that need no mapping. Numbers do: sets disagree on what 1 means."""

_MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}


def is_missing(value: Any) -> bool:
    """Say whether a field holds nothing: null, or NaN, which is what tables make of it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def plain(value: Any) -> str:
    """Return a text, a number or a truth value as text, and nothing for what has no short text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of 0 and 1 with gaps is a column of floats in many tables
    return str(value) if isinstance(value, str | int | float) and value == value else ""


def text_of(row: Mapping[str, Any], name: str) -> str:
    """Return the text of a column, empty where it has none; RecordError if it holds something else."""
    value = row.get(name)
    if is_missing(value) or value == "":
        return ""
    if isinstance(value, float) or not (text := plain(value)):
        raise RecordError(f"column {name!r} is a {type(value).__name__}, not text")
    return encodable(text, f"column {name!r}")


def prompt_of(row: Mapping[str, Any], *names: str) -> str:
    """Return the text of the first of these columns that has one; RecordError if it is blank, or none has one."""
    text = next(filter(None, (text_of(row, name) for name in names)), "")
    if not text.strip():
        raise RecordError(f"column {' or '.join(map(repr, names))} is empty; give it a prompt")
    return text


def messages_of(value: Any, where: str) -> list[dict[str, Any]]:
    """Return a conversation in the form that chat templates take.

    Args:
        value: A list of messages, in OpenAI's form or ShareGPT's; or the JSON text of one, since CSV has no lists.
        where: What messages call it, e.g. `column 'messages'`.

    Raises:
        RecordError: It is none, or a message in it is none, or has a content that is not text.
    """
    if isinstance(value, str):
        try:
            value = read_value(value)
        except RecordError as error:
            raise RecordError(f"{where} holds text that is not a JSON list of messages") from error
    if not isinstance(value, list) or not value:
        raise RecordError(f'{where} is no list of messages, {{"role": ..., "content": ...}}, with at least one in it')
    return [_message(f"{where}, message {number}", turn) for number, turn in enumerate(value, start=1)]


def split_answer(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Return the messages before the assistant's last turn and the text of it, empty if they do not end with one."""
    if messages[-1]["role"] != "assistant":
        return messages, ""
    return messages[:-1], messages[-1]["content"]


def label_of(
    row: Mapping[str, Any], name: str, labels: Mapping[str, Label | None], default: Label | None
) -> Label | None:
    """Return the label in a column.

    Args:
        row: The record.
        name: The column; it may be missing or empty.
        labels: Values, in lower case, and what they mean.
        default: Label of a record that says none.

    Raises:
        RecordError: It holds something that is not one of `labels`.
    """
    value = row.get(name)
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        return default
    if not isinstance(value, str | int | float):
        raise RecordError(
            f"column {name!r} is a {type(value).__name__}, not one of {', '.join(labels)}; give one label"
        )
    try:
        return labels[plain(value).strip().casefold()]
    except KeyError:
        raise RecordError(
            f"column {name!r} is {reprlib.repr(plain(value))}, which is not one of {', '.join(labels)}; "
            'say what it means with Columns(labels={"...": "harmful", "...": "benign"})'
        ) from None


def encodable(text: str, where: str) -> str:
    """Return `text`; RecordError if it holds half a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RecordError(f"{where} holds half a surrogate pair, which is no text") from None
    return text


def _message(where: str, turn: Any) -> dict[str, Any]:
    if isinstance(turn, Mapping) and {"from", "value"} <= turn.keys():  # ShareGPT
        turn = {"role": _SHAREGPT_ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str) or not turn["role"]:
        raise RecordError(f'{where} is not an object with "role" and "content"')
    content = "" if turn.get("tool_calls") and turn.get("content") is None else turn.get("content")
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "\n".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise RecordError(f"{where} (role {turn['role']}) has a content that is not text")
    kept = {name: turn[name] for name in _MESSAGE_KEYS if turn.get(name) is not None}
    return {**kept, "content": encodable(content, where)}
