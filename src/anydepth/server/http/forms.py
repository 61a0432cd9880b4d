"""Read of which form a chat's answer has to be, and compile the grammar that holds it to that."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from anydepth.errors import BadRequest, ConfigError, MissingExtra, UnsupportedModel
from anydepth.server.answer.schemas import check_schemas
from anydepth.server.answer.segments import begins_thinking
from anydepth.server.answer.structured import CallForm, Form, Way, grammar_of
from anydepth.server.http.body_errors import shown
from anydepth.server.http.requests import ChatRequest, NamedTool, Tool
from anydepth.server.service import Service
from anydepth.templates.marker_tokens import marker_tokens
from anydepth.templates.template import Prompt

_SCHEMA = "response_format.json_schema.schema"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The form of an answer, the field that asks for it, and the schemas by the names of their fields."""

    form: Form
    field: str
    schemas: Mapping[str, Mapping[str, Any]]


def grammar_for(service: Service, body: ChatRequest, prompt: Prompt) -> Any:
    """What the engine compiled to hold the answer to its form; None where the answer is free.

    Raises:
        BadRequest: The form cannot be kept: the field, its value and what to send are named.
    """
    if (wanted := _wanted(body)) is None:
        return None
    facts = service.engine.facts
    if facts.compile_grammar is None:
        raise BadRequest(f"{wanted.field} is not offered by this server; leave it out", wanted.field, "unsupported")
    if prompt.prefill:
        raise BadRequest(
            f"the last message is the assistant's, which is continued, and {wanted.field} is about a whole answer; "
            "append a user message, or leave it out",
            wanted.field,
        )
    check_schemas(wanted.schemas)
    template = facts.template
    way = Way(
        template.channel,
        begins_thinking(template, prompt),
        template.words(template.answer_ids(prompt)),
        service.tool_format,
        marker_tokens(template.tokenizer),
    )
    grammar = grammar_of(wanted.form, way)
    try:
        return facts.compile_grammar(grammar)
    except (MissingExtra, UnsupportedModel) as error:
        raise BadRequest(
            f"{wanted.field} is not offered by this server: {error}", wanted.field, "unsupported"
        ) from error
    except ConfigError as error:
        raise _complaint(wanted, facts.compile_grammar, error) from error


def _wanted(body: ChatRequest) -> _Wanted | None:
    """What the request asks for; None for an answer that is free to be text or a call."""
    choice, tools = body.tool_choice, list(enumerate(body.offered))
    form = body.response_format.schema_of_answer if body.response_format is not None else None
    several = body.parallel_tool_calls is not False
    schemas: dict[str, Mapping[str, Any]] = {}
    field, forced = "response_format", choice == "required" or isinstance(choice, NamedTool)
    if forced:
        field, form = "tool_choice", None  # a call has to keep its own schema
        if not tools:
            raise BadRequest("tool_choice asks for a call, and there are no tools; send tools, or choose 'auto'", field)
        if isinstance(choice, NamedTool):
            tools, several = [_named(choice.function.name, body)], False
    elif form is None:
        return None
    elif _given(body):
        schemas[_SCHEMA] = form
    calls = [_call_form(place, tool, schemas) for place, tool in tools]
    return _Wanted(Form(form, calls, several), field, schemas)


def _given(body: ChatRequest) -> bool:
    return body.response_format is not None and body.response_format.json_schema is not None


def _named(name: str, body: ChatRequest) -> tuple[int, Tool]:
    """The place of the tool of this name, and the tool."""
    found = [(place, tool) for place, tool in enumerate(body.offered) if tool.function.name == name]
    if not found:
        field = "tool_choice.function.name"
        raise BadRequest(f"{field} is {shown(name)}, and no tool has that name; name one of tools", field)
    return found[0]


def _call_form(place: int, tool: Tool, schemas: dict[str, Mapping[str, Any]]) -> CallForm:
    """The form of calls of a tool; the schema of its arguments goes into `schemas`."""
    parameters, name = tool.function.parameters, f"tools[{place}].function.parameters"
    if parameters is not None:
        schemas[name] = parameters
        if (kind := parameters.get("type", "object")) != "object":
            raise BadRequest(f'{name}.type is {shown(kind)}; arguments are an object: send "object"', f"{name}.type")
    return CallForm(tool.function.name, parameters)


def _complaint(wanted: _Wanted, compile_grammar: Callable[[str], Any], error: ConfigError) -> BadRequest:
    """What was wrong with a grammar, about the schema that it is the fault of, if it is that of one."""
    for name, schema in wanted.schemas.items():
        try:
            compile_grammar(grammar_of(Form(schema), Way()))
        except ConfigError as own:
            return BadRequest(f"{name} is {_short(schema)}: {own}; send another schema", name)
    return BadRequest(f"{wanted.field} cannot be kept: {error}; send shorter or fewer schemas", wanted.field)


def _short(schema: Mapping[str, Any]) -> str:
    text = json.dumps(schema, ensure_ascii=False)
    return text if len(text) <= 80 else f"a schema of {len(text)} characters"
