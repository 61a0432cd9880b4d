"""Read the pairs of tool calls that the suite `actions` measures, and write each as a prompt."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from anydepth.errors import PromptError
from anydepth.evals.context import Context
from anydepth.files import packaged_toml
from anydepth.templates.call_formats import ToolFormat, choose_format
from anydepth.templates.prompt import Prompt
from anydepth.templates.proposed_call import CallPrompt


@dataclass(frozen=True, slots=True)
class Act:
    """One tool call of a pair.

    Attributes:
        id: `DOMAIN-NUMBER-harmful` or `-harmless`.
        domain: What the agent works on.
        pair: Number of its pair in the domain.
        harmful: Whether it is the harmful one.
        system: What the agent is told.
        request: What the user asks for.
        tool: Name of the tool.
        arguments: Its one argument.
    """

    id: str
    domain: str
    pair: int
    harmful: bool
    system: str
    request: str
    tool: str
    arguments: Mapping[str, str]

    @property
    def twin(self) -> str:
        """Id of the other act of the pair."""
        stem = self.id.rpartition("-")[0]
        return f"{stem}-{'harmless' if self.harmful else 'harmful'}"

    @property
    def call(self) -> dict[str, Any]:
        """The tool call, as `Guard.gate` takes it."""
        return {"name": self.tool, "arguments": dict(self.arguments)}

    @property
    def schema(self) -> dict[str, Any]:
        """The tool as OpenAI describes one."""
        properties = {name: {"type": "string"} for name in self.arguments}
        parameters = {"type": "object", "properties": properties, "required": list(properties)}
        return {"type": "function", "function": {"name": self.tool, "parameters": parameters}}


def acts() -> list[Act]:
    """The acts of `data/actions.toml`, the two of a pair behind one another."""
    found = []
    for domain in packaged_toml("actions.toml")["domain"]:
        for number, (request, *values) in enumerate(domain["pairs"]):
            for kind, value in zip(("harmless", "harmful"), values, strict=True):
                name = domain["name"]
                given = {domain["argument"]: value}
                said = (domain["system"], request, domain["tool"])
                found.append(Act(f"{name}-{number}-{kind}", name, number, kind == "harmful", *said, given))
    return found


def domains(chosen: Iterable[Act]) -> list[str]:
    """The domains of the acts, each once, in their order."""
    return list(dict.fromkeys(act.domain for act in chosen))


def situation(act: Act) -> str:
    """What the user says: the same for both of a pair."""
    return f"{act.system}\n\n{act.request}"


def asked(act: Act) -> str:
    """What the user says who asks for the act itself."""
    ((name, value),) = act.arguments.items()
    return f"{situation(act)} Call {act.tool} with {name} {json.dumps(value, ensure_ascii=False)}."


def proposed(context: Context, act: Act, said: str, tools: list[dict[str, Any]] | None = None) -> CallPrompt:
    """The prompt of an act that is proposed as the answer to what the user said."""
    messages = [{"role": "user", "content": said}]
    return context.backend.template.call_prompt(messages, act.call, tools=tools, written=written(context))


def noted(context: Context, act: Act, said: str, note: str) -> Prompt:
    """The prompt behind a proposed call and a tool's reply to it.

    Where the chat template takes no calls or no tool's reply, the call is text and the reply is the user's.
    """
    user, tools = {"role": "user", "content": said}, [act.schema]
    function = {"name": act.tool, "arguments": dict(act.arguments)}
    call = {"id": "anydepth0", "type": "function", "function": function}
    turns: list[dict[str, Any]] = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "name": act.tool, "content": note},
    ]
    template, (value,) = context.backend.template, act.arguments.values()
    with suppress(PromptError):  # some templates raise, others leave out what they do not know
        found = template.prompt([user, *turns], tools=tools)
        if template.words(found.ids).count(value) > said.count(value):
            return found
    plain = [{"role": "assistant", "content": written(context).write(act.tool, act.arguments)}]
    return template.prompt([user, *plain, {"role": "user", "content": note}], tools=tools)


def written(context: Context) -> ToolFormat:
    """How calls are written where the template writes none: as Hermes, unless user or template say otherwise."""
    template = str(getattr(context.backend.template.tokenizer, "chat_template", "") or "")
    found = choose_format(context.setting("format", "auto"), template) or choose_format("hermes", "")
    assert found is not None
    return found
