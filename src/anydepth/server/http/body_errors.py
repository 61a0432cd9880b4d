"""Say what is wrong with a request's body: the field's name, its value, and what to send."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from anydepth.errors import BadRequest

KINDS = ("<text>", "<list>", "<message>", "<part>", "<function_call>", "<function_call_output>", "<reasoning>")
"""Tags of the alternatives of a field: pydantic's places have them, the names of fields do not."""

_LONGEST = 40
"""Characters of a value that are repeated to the client; longer ones are described."""

Told = Mapping[str, Any]
"""The `ctx` of one of pydantic's errors."""

_REMEDIES: dict[str, str | Callable[[Told], str]] = {
    "string_type": "send a text",
    "list_type": "send a list",
    "dict_type": "send an object",
    "model_type": "send an object",
    "model_attributes_type": "send an object",
    "bool_type": "send true or false",
    "int_type": "send a whole number",
    "float_type": "send a number",
    "finite_number": "send a finite number",
    "greater_than_equal": lambda told: f"send at least {_figure(told['ge'])}",
    "less_than_equal": lambda told: f"send at most {_figure(told['le'])}",
    "less_than": lambda told: f"send less than {_figure(told['lt'])}",
    "literal_error": lambda told: _one_of(str(told["expected"])),
}
"""Kind of pydantic's error -> what to send instead. Numbers and truth values are `Strict`: pydantic parses no texts."""


def complaint(error: Mapping[str, Any]) -> BadRequest:
    """One of pydantic's errors as our own, which names the field, the value and the remedy.

    Values are repeated only where they are short: a text of the conversation is not.
    """
    place = error["loc"][1:] if error["loc"][:1] == ("body",) else error["loc"]
    field, kind, told = field_of(place), str(error["type"]), error.get("ctx") or {}
    name = field or "the body"
    if kind == "extra_forbidden":  # the last part is the client's own word, whatever it looks like
        field = ".".join(filter(None, (field_of(place[:-1]), str(place[-1])[:_LONGEST])))
        return BadRequest(f"{field} is not offered by this server; leave it out", field, "unsupported")
    if kind == "missing":
        return BadRequest(f"{name} is missing; send it" if field else "the body is empty; send a JSON object", field)
    if kind in ("too_short", "string_too_short"):
        unit = "entry" if kind == "too_short" else "character"
        return BadRequest(f"{name} is empty; send at least one {unit}", field)
    if kind in ("too_long", "string_too_long"):
        unit = "entries" if kind == "too_long" else "characters"
        found = told.get("actual_length") or len(error["input"])
        return BadRequest(f"{name} has {found} {unit}; send {told['max_length']} at most", field)
    remedy = _REMEDIES.get(kind) or str(error["msg"]).removeprefix("Value error, ")
    remedy = remedy if isinstance(remedy, str) else remedy(told)
    if kind == "value_error" and not field:
        return BadRequest(remedy)
    return BadRequest(f"{name} is {shown(error['input'])}; {remedy}", field)


def field_of(place: Sequence[str | int]) -> str | None:
    """The name of a field as clients write it, e.g. `messages[2].content`; None for the body itself."""
    name = ""
    for part in place:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part not in KINDS:
            name += f".{part[:_LONGEST]}"
    return name.removeprefix(".") or None


def shown(value: Any) -> str:
    """A value as a message names it."""
    if isinstance(value, str) and len(value) > _LONGEST:
        return f"a text of {len(value)} characters"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value)
    return text if len(text) <= 2 * _LONGEST else f"a number of {len(text)} digits"


def unreadable(error: Exception) -> BadRequest:
    """Why a body cannot be read as JSON."""
    if isinstance(error, json.JSONDecodeError):
        where = f"at line {error.lineno}, column {error.colno}"
        return BadRequest(f"the body is not JSON: {error.msg} {where}; send a JSON object")
    if isinstance(error, UnicodeDecodeError):
        return BadRequest(f"the body is not UTF-8: byte {error.start} is no part of a character; send JSON in UTF-8")
    if isinstance(error, UnicodeEncodeError):
        return BadRequest("a text of the body has half of a surrogate pair in it; send whole characters")
    if isinstance(error, RecursionError):
        return BadRequest("the body is nested too deeply; send a flatter object")
    reason = str(error).partition(":")[0]  # numbers of thousands of digits; NaN, where it is not taken
    return BadRequest(f"the body is not JSON: {reason}; send a JSON object")


def _figure(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _one_of(expected: str) -> str:
    return f"choose {expected}" if " or " in expected else f"only {expected} is offered here"
