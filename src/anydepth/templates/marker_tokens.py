"""Find the markers of a tokenizer: tokens of their own like `<tool_call>`, `</think>` and `[TOOL_CALLS]`."""

import re
from collections.abc import Mapping
from typing import Any

_LOOKS = re.compile(r"<\S+>|\[\S+\]")


def marker_tokens(tokenizer: Any) -> dict[str, int]:
    """The text and id of every added token that is written in angle or square brackets, or that is special.

    Some tokenizers have `<tool_call>` as a special token and some as an ordinary added one; both are one token that a
    model writes as a marker, and no part of a text.
    """
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", None) or {}
    return {str(token): id for id, token in added.items() if is_marker(str(token), special=bool(token.special))}


def is_marker(text: str, *, special: bool) -> bool:
    """Whether an added token with this text is a marker; `special` is what the tokenizer calls it."""
    return special or _LOOKS.fullmatch(text) is not None


def split_at_markers(text: str, markers: Mapping[str, int]) -> list[str | int]:
    """The parts of `text` in order: ids of markers, and texts between them, none of them empty."""
    longest_first = sorted(markers, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
    parts: list[str | int] = []
    begin = 0
    for found in pattern.finditer(text):
        parts += [text[begin : found.start()], markers[found[0]]]
        begin = found.end()
    return [part for part in [*parts, text[begin:]] if part != ""]
