"""How models write tool calls; the formats are rows of `data/toolcalls.toml`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from anydepth.errors import ConfigError
from anydepth.files import packaged_toml


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One row of `toolcalls.toml`; see there."""

    name: str
    detect: Sequence[str]
    open: str = ""
    close: str = ""
    split: str = ""
    arguments: Sequence[str] = ("arguments",)
    prefix: str = ""

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """A call of the function `name` as the model would write it; `parse_calls` reads it back."""
        text = json.dumps(arguments, ensure_ascii=False)
        if self.split:
            return f"{self.open}{name}{self.split}{text}"
        text = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{self.arguments[0]}": {text}}}'
        return f"{self.open}\n{text}\n{self.close}" if self.close else self.open + text


@cache
def formats() -> tuple[ToolFormat, ...]:
    """The rows of `toolcalls.toml`."""
    return tuple(ToolFormat(**row) for row in packaged_toml("toolcalls.toml")["format"])


def choose_format(name: str, template: str) -> ToolFormat | None:
    """The row called `name`; for `auto` the one that fits the chat template's text, or None; for `none` None.

    Raises:
        ConfigError: There is no such row.
    """
    if name == "none":
        return None
    if name == "auto":
        return next((row for row in formats() if all(text in template for text in row.detect)), None)
    rows = {row.name: row for row in formats()}
    if name not in rows:
        raise ConfigError(f"[tools] format is {name!r}; choose auto, none or one of {', '.join(rows)}")
    return rows[name]
