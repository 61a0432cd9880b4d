"""Turn a chat request into a prompt and a way to read the answer."""

import json
from typing import Any

from anydepth.errors import BadRequest, PromptError
from anydepth.server.answer.compose import Reading
from anydepth.server.answer.segments import Markers, begins_thinking
from anydepth.server.http.body_errors import shown
from anydepth.server.http.requests import ChatMessage, ChatRequest, GateRequest
from anydepth.server.service import Service
from anydepth.templates.call_formats import ToolFormat
from anydepth.templates.proposed_call import CallPrompt, read_call
from anydepth.templates.template import ChatTemplate, Prompt

_ROLES = {"developer": "system"}
"""OpenAI's newer names of roles -> the ones that chat templates know."""


def chat_prompt(template: ChatTemplate, request: ChatRequest) -> Prompt:
    """The prompt of a chat request; a last message of the assistant is a prefill.

    `continue_final_message` and `add_generation_prompt` are vLLM's and Transformers' names for the same thing: they may
    be left out, and may not ask for anything else.

    Raises:
        BadRequest: They contradict the messages or each other.
        PromptError: The messages cannot be rendered.
    """
    continued = request.messages[-1].role == "assistant"
    reason = (
        "the last message is the assistant's, which is continued; append a user message"
        if continued
        else "there is no last message of the assistant to continue; append one"
    )
    for name, fitting in (("continue_final_message", continued), ("add_generation_prompt", not continued)):
        if getattr(request, name) not in (None, fitting):
            raise BadRequest(f"{reason}, or leave continue_final_message and add_generation_prompt out", name)
    tools = [tool.model_dump(exclude_none=True) for tool in request.offered]
    return template.prompt(
        [chat_message(place, message) for place, message in enumerate(request.messages)],
        tools=None if request.tool_choice == "none" else tools,
    )


def gate_prompt(template: ChatTemplate, request: GateRequest, written: ToolFormat | None) -> CallPrompt:
    """The prompt of a call that is to be judged, written as the template writes calls, or else as `written` says.

    Raises:
        BadRequest: A field of the request is not what it has to be.
        PromptError: The messages or the call cannot be rendered.
    """
    messages = [chat_message(place, message) for place, message in enumerate(request.messages)]
    function = request.tool_call.function
    arguments = call_arguments(function.arguments, "tool_call.function.arguments")
    tools = [tool.model_dump(exclude_none=True) for tool in request.tools or ()]
    call = {"name": function.name, "arguments": arguments}
    try:
        read_call({**call, "arguments": function.arguments})
    except PromptError as error:
        raise BadRequest(str(error), "tool_call.function") from error
    return template.call_prompt(messages, call, tools=tools or None, written=written)


def chat_message(place: int, message: ChatMessage) -> dict[str, Any]:
    """A message as chat templates read it."""
    record = message.model_dump(exclude_none=True)
    record["role"] = _ROLES.get(message.role, message.role)
    if message.tool_calls:
        record.setdefault("content", "")  # some templates join it to other text
    elif message.content is None:
        name = f"messages[{place}].content"
        raise BadRequest(f"{name} is missing (role {shown(message.role)}); give it a text", name, "invalid_prompt")
    for number, call in enumerate(record.get("tool_calls", ())):
        function = call["function"]
        function["arguments"] = call_arguments(
            function["arguments"], f"messages[{place}].tool_calls[{number}].function.arguments"
        )
    return record


def call_arguments(text: str, name: str) -> dict[str, Any]:
    """The arguments of a call: OpenAI writes them as JSON text, chat templates expect the object.

    Clients send an empty text, or null, for a call that had no arguments.
    """
    try:
        arguments = json.loads(text) if text.strip() else {}
        json.dumps(arguments, ensure_ascii=False).encode()  # half a surrogate is no text
    except (ValueError, RecursionError):
        raise BadRequest(f"{name} is {shown(text)}, which is not JSON; send the JSON text of an object", name) from None
    if arguments is not None and not isinstance(arguments, dict):
        raise BadRequest(f"{name} is {shown(text)}; send the JSON text of an object", name)
    return arguments or {}


def reading_of(
    service: Service, body: ChatRequest, prompt: Prompt, refusal: str, *, structured: bool = False
) -> Reading:
    """How the answer to a chat request is read.

    Args:
        service: The service that answers it.
        body: The request.
        prompt: Its prompt.
        refusal: Text in place of what is withheld.
        structured: Whether the answer has to be JSON or a call.
    """
    template = service.engine.facts.template
    offered = frozenset(tool.function.name for tool in body.offered)
    markers = Markers(
        channel=template.channel,
        tools=service.tool_format if offered else None,
        offered=offered,
        special=service.special,
        thinking=begins_thinking(template, prompt),
        structured=structured,
    )

    def decode(ids: Any) -> str:
        return template.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    return Reading(
        refusal,
        body.stops,
        markers,
        reasoning=service.settings.reasoning.release,
        decode=decode if markers.needed else None,
        prefix=prompt.ids[prompt.start :],
        one_call=body.parallel_tool_calls is False,
        structured=structured,
    )
