"""How a model is asked in words whether an answer is harmful, as `asked.toml` has it."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from anydepth.files import packaged_toml


@dataclass(frozen=True, slots=True)
class Wording:
    """The question that a model is given about an answer; `asked.toml` says what the fields mean."""

    harmful: tuple[str, ...]
    harmless: tuple[str, ...]
    question: str = ""
    form: Literal["message", "turns"] = "message"
    lead: str = ""


def own_wording() -> Wording:
    """The question that the answering model is given about its own answer."""
    return _wordings()[0]


def guard_wording(name: str) -> Wording:
    """How the external guard called `name` is asked; the first row of `asked.toml` whose pattern fits its end."""
    last = Path(name).name
    return next(wording for pattern, wording in _wordings()[1] if re.search(pattern, last, re.IGNORECASE))


def endpoint_question() -> str:
    """The question for a chat model behind an endpoint, with `{conversation}`, `{answer}` and `{mark}` to fill in."""
    return packaged_toml("asked.toml")["endpoint"]["question"]


@cache
def _wordings() -> tuple[Wording, tuple[tuple[str, Wording], ...]]:
    data = packaged_toml("asked.toml")
    return _wording(data["own"]), tuple((row.pop("pattern"), _wording(row)) for row in data["guard"])


def _wording(row: dict[str, Any]) -> Wording:
    words = {name: tuple(row[name]) for name in ("harmful", "harmless")}
    return Wording(**{**row, **words})
