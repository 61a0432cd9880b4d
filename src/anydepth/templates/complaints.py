"""Say why a chat template refuses a conversation, and what its caller can do."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from anydepth.templates.rendering import Renderer

_TOOL = {
    "type": "function",
    "function": {"name": "tool", "description": "", "parameters": {"type": "object", "properties": {}}},
}
_LOST = "the chat template does not write the content of a message of role user, neither as text nor in parts"
_PLAIN = [{"role": "user", "content": "text"}]
_OWN = "set tokenizer.chat_template to one that does (docs/templates.md)"
_SET = "template_kwargs (--template-kwarg NAME=VALUE, or [model] template_kwargs in guard.toml)"


def of_template(renderer: Renderer) -> str:
    """Return why `renderer` cannot write a plain user message: the cause and the remedy."""
    error = _error(renderer, _PLAIN)
    said = f"the chat template fails on a plain conversation: {error}" if error else _LOST
    if remedy := blamed(renderer, lambda other: other.fitted().writes()):
        return f"{said}; {remedy}"
    if renderer.writes(tools=[_TOOL]):
        return f"{said}; it writes no prompt without tools, {_OWN}"
    if missing := _missing(renderer):
        return f"{said}; it wants the variables {', '.join(missing)}: give them in {_SET}"
    if type(error).__name__ == "TemplateSyntaxError":
        return f"{said}; it is broken at line {getattr(error, 'lineno', '?')}: mend it, or {_OWN}"
    return f"{said}; {_OWN}"


def of_messages(
    renderer: Renderer, history: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, error: Exception
) -> str:
    """Return what of a conversation the template refuses with `error`, and the remedy."""
    if tools and _error(renderer, history) is None:
        return f"refuses the tools: {error}; change the tools, or leave them out"
    if any(message.get("tool_calls") for message in history):
        quiet = [
            {
                **{key: value for key, value in each.items() if key != "tool_calls"},
                "content": each.get("content") or "text",
            }
            for each in history
        ]
        if _error(renderer, quiet, tools) is None:
            return f"refuses the tool calls: {error}; change them (id, name and arguments as the template writes them)"
    if remedy := blamed(renderer, lambda other: _error(other, history, tools) is None):
        return f"refuses the messages: {error}; {remedy}"
    roles = [message["role"] for message in history]
    return f"refuses messages of roles {roles}: {error}; change the messages (roles and their order)"


def blamed(renderer: Renderer, works: Callable[[Renderer], bool]) -> str:
    """Return the remedy if without some of the caller's variables the template `works`; empty if that is not why."""
    names = list(renderer.kwargs)
    causes = [name for name in names if works(_without(renderer, [name]))]
    if not causes and not (names and works(_without(renderer, names))):
        return ""
    given = ", ".join(f"{name}={renderer.kwargs[name]!r}" for name in causes or names)
    return f"the template_kwargs {given} are the cause, change or drop them"


def _without(renderer: Renderer, names: Sequence[str]) -> Renderer:
    return replace(renderer, kwargs={name: value for name, value in renderer.kwargs.items() if name not in names})


def _missing(renderer: Renderer) -> list[str]:
    """Return the names of all variables that the template misses, which it names one at a time."""
    missing: list[str] = []
    while found := re.match(r"'(\w+)' is undefined", str(_error(renderer, _PLAIN) or "")):
        if found[1] in missing:
            break
        missing.append(found[1])
        renderer = replace(renderer, kwargs={**renderer.kwargs, found[1]: ""})
    return missing


def _error(
    renderer: Renderer, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None
) -> Exception | None:
    try:
        renderer.text(messages, tools=tools)
    except Exception as error:  # whatever the template's author raises
        return error
    return None
