"""Write the grammar of an answer that has to be JSON, or a call of a tool; llguidance's variant of Lark.

Separators are those that models write most, `", "` and `": "` or none of the spaces, and there is no other white space:
a model that is held to a grammar can otherwise write white space for ever.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anydepth.errors import BadRequest
from anydepth.server.answer.schemas import closed, moved
from anydepth.templates.call_formats import ToolFormat
from anydepth.templates.marker_tokens import split_at_markers
from anydepth.templates.published import Channel

MOST_CALLS = 16
"""Calls that an answer may have which has to call a tool."""

_GUIDANCE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class CallForm:
    """A tool that may be called.

    Attributes:
        name: Its name.
        parameters: JSON Schema of its arguments; None if it has none.
    """

    name: str
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer has to be: JSON by a schema, or calls of tools, or either.

    Attributes:
        schema: JSON Schema of the answer; None if it has to be a call.
        calls: The tools that may be called.
        several: Whether it may have more than one call.
    """

    schema: Mapping[str, Any] | None = None
    calls: Sequence[CallForm] = ()
    several: bool = True


@dataclass(frozen=True, slots=True)
class Way:
    """How a model comes to its answer.

    Attributes:
        channel: How thoughts are set apart, or None.
        thinking: Whether the prompt ends inside thoughts.
        opener: What stands before an answer without thoughts.
        tools: How calls are written, or None if that is not known.
        markers: Text and id of the tokens that are markers.
    """

    channel: Channel | None = None
    thinking: bool = False
    opener: str = ""
    tools: ToolFormat | None = None
    markers: Mapping[str, int] | None = None


def grammar_of(form: Form, way: Way) -> str:
    """The grammar of an answer of this form; the model may think before it, as its template has it.

    Raises:
        BadRequest: It must be a call, and how the model writes calls is not known.
    """
    writer = _Writer(way.markers or {})
    answers = [writer.json(closed(form.schema))] if form.schema is not None else []
    if form.calls and way.tools is not None:
        answers.append(_calls(writer, form, way.tools))
    if not answers:
        raise BadRequest(
            "tool_choice asks for a call, and how this model writes calls is not known; send 'auto', or leave it out",
            "tool_choice",
            "unsupported",
        )
    answer = writer.rule(" | ".join(answers))
    channel, ways = way.channel, []
    if not way.thinking:
        ways.append(f"{writer.begin(way.opener)} {answer}")
    if channel is not None:
        begin = "" if way.thinking else writer.text(channel.think_open)
        close = channel.skip.lstrip() or channel.think_close + channel.answer_open
        ways.append(f"{begin} {writer.up_to(close)} {answer}".lstrip())
    return "\n".join([f"start: {' | '.join(ways)}", *writer.lines])


def _calls(writer: "_Writer", form: Form, row: ToolFormat) -> str:
    """The name of a rule for the calls of an answer, one after the other."""
    call = writer.rule(" | ".join([_call(writer, each, row) for each in form.calls]))
    listed = bool(row.open) and not (row.split or row.close)  # one marker, and a list of calls behind it
    calls = call
    if form.several and row.open:
        between = '", "' if listed else writer.text("\n") if row.close else ""
        calls = f"{call} ({between} {call}){{0,{MOST_CALLS - 1}}}"
    return writer.rule(f'{writer.text(row.open)} " "? "[" {calls} "]"' if listed else calls)


def _call(writer: "_Writer", call: CallForm, row: ToolFormat) -> str:
    """An expression for one call."""
    given = _NO_ARGUMENTS if call.parameters is None else {**closed(call.parameters), "type": "object"}
    if row.split:
        return f"{writer.text(row.open + call.name + row.split)} {writer.json(given)}"
    key = row.arguments[0]
    properties = {"name": {"const": call.name}, key: moved(given, f"#/properties/{key}")}
    value = {"type": "object", "properties": properties, "required": ["name", key], "additionalProperties": False}
    if row.close:
        begin, end = (writer.text(each) for each in (f"{row.open}\n", f"\n{row.close}"))
        return f"{begin} {writer.json(value)} {end}"
    return writer.json(value)


class _Writer:
    """Collects the rules of a grammar."""

    def __init__(self, markers: Mapping[str, int]) -> None:
        self.lines: list[str] = []
        self._markers = markers

    def rule(self, body: str) -> str:
        """The name of a new rule."""
        name = f"part_{len(self.lines)}"
        self.lines.append(f"{name}: {body}")
        return name

    def json(self, schema: Mapping[str, Any]) -> str:
        """The name of a rule for a value of this JSON Schema."""
        return self.rule(f"%json {json.dumps({**schema, 'x-guidance': _GUIDANCE})}")

    def text(self, text: str) -> str:
        """An expression for a text: markers in it are tokens, the rest may be any tokens that spell it."""
        return " ".join(_part(each) for each in split_at_markers(text, self._markers))

    def begin(self, opener: str) -> str:
        """An expression for what stands before an answer: a blank may be left out.

        Where nothing does, a space may: in vocabularies of SentencePiece the first word of an answer begins with one.
        """
        if opener.strip():
            return self.text(opener)
        return f"({' | '.join(map(_quoted, sorted({' ', opener or ' '})))})?"

    def up_to(self, close: str) -> str:
        """An expression for any text, up to and with `close`."""
        first, *rest = split_at_markers(close, self._markers)
        if isinstance(first, int):  # no text has a marker in it
            free = self.rule(r"/(?s:.*)/")
            return " ".join([free, *map(_part, [first, *rest])])
        name = f"part_{len(self.lines)}"
        self.lines.append(f"{name}[lazy]: /(?s:.*){_escaped(first)}/")
        return " ".join([name, *map(_part, rest)])


def _part(part: str | int) -> str:
    return f"<[{part}]>" if isinstance(part, int) else _quoted(part)


def _quoted(text: str) -> str:
    return json.dumps(text)


def _escaped(text: str) -> str:
    """A text as a part of a regular expression between slashes."""
    return re.escape(text).replace("/", r"\/").replace("\\\n", r"\n")
