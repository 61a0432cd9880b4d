"""Put an answer into another shape."""

import base64
import json
import textwrap
from collections.abc import Callable, Mapping

from anydepth.errors import ConfigError
from anydepth.evals.attacks.texts import wording


def restyle(style: str, text: str) -> str:
    """`text` in a shape that can be made of it mechanically; ConfigError lists those there are."""
    if style not in MECHANICAL:
        raise ConfigError(f"no answer can be put into the style {style!r}; choose from {', '.join(MECHANICAL)}")
    return MECHANICAL[style](text)


def request_in_style(style: str, request: str) -> str:
    """`request`, to be answered in that style; ConfigError lists those there are."""
    sentences = wording("styles")
    if style not in sentences:
        raise ConfigError(f"there are no words to ask for the style {style!r}; choose from {', '.join(sentences)}")
    return f"{request}\n\n{sentences[style]}"


def _json(text: str) -> str:
    title, *steps = [line for line in text.splitlines() if line.strip()] or [""]
    return json.dumps({"title": title, "steps": steps}, ensure_ascii=False, indent=1)


def _verse(text: str) -> str:
    """Short lines with a capital letter each: the look of a poem, not its words."""
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 36)]
    return "\n".join(line[:1].upper() + line[1:] for line in lines)


def _code(text: str) -> str:
    """A program whose first line is a comment and whose other lines are string literals."""
    title, *steps = [line for line in text.splitlines() if line.strip()] or [""]
    literals = [f"step_{number} = {json.dumps(step, ensure_ascii=False)}" for number, step in enumerate(steps, 1)]
    return "\n".join(("```python", f"# {title}", *literals, "```"))


MECHANICAL: Mapping[str, Callable[[str], str]] = {
    "verse": _verse,
    "comments": lambda text: "\n".join(f"# {line}".rstrip() for line in text.splitlines()),
    "code": _code,
    "json": _json,
    "base64": lambda text: base64.b64encode(text.encode()).decode("ascii"),
}
"""Styles that a stored answer can be put into."""
