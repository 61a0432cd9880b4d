"""Find the messages whose text a chat template drops."""

from collections.abc import Mapping, Sequence
from typing import Any

from anydepth.templates.rendering import Renderer

_REMEMBERED = 1024


class Kept:
    """What a template does with conversations of a shape: the roles in their order, and which of them call tools.

    Args:
        renderer: Renders messages.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._seen: dict[tuple[Any, ...], int | None] = {}

    def dropped(self, history: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, text: str) -> int | None:
        """Return the index of the first message whose text is not in the prompt, or None if all are.

        The template is given the same conversation with a word of ours for each text, as a short text may well be in
        the prompt for another reason. An assistant's words beside its tool calls are not looked for: many templates
        write the calls alone.

        Args:
            history: The messages.
            tools: Tool schemas for the template.
            text: What the template writes for `history`.
        """
        shape = (
            bool(tools),
            *((message["role"], _says(message), bool(message.get("tool_calls"))) for message in history),
        )
        if shape in self._seen:
            return self._seen[shape]
        marked = [
            {**each, "content": f"anydepthmessage{at}text"} if _says(each) else each for at, each in enumerate(history)
        ]
        written = self._renderer.tried(marked, tools=tools)
        if written is None:  # the template looks into the text (a tool's result as JSON): then that is looked for
            return _first_lost(history, text)
        if len(self._seen) >= _REMEMBERED:
            self._seen.clear()
        self._seen[shape] = _first_lost(marked, written)
        return self._seen[shape]


def _says(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(content, str) and bool(content.strip()) and not message.get("tool_calls")


def _first_lost(messages: Sequence[Mapping[str, Any]], text: str) -> int | None:
    return next((at for at, each in enumerate(messages) if _says(each) and each["content"].strip() not in text), None)
