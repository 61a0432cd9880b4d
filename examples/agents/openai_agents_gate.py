"""Gate the function tools of an agent of the OpenAI Agents SDK."""

from collections.abc import Mapping, Sequence
from typing import Any

from agents import ToolGuardrailFunctionOutput, ToolInputGuardrail, ToolInputGuardrailData, tool_input_guardrail
from anydepth_gate import Gate


def gating(gate: Gate, *, stop: bool = False) -> ToolInputGuardrail[Any]:
    """A guardrail for `function_tool(tool_input_guardrails=[...])`.

    The gate reads the turn's input and the call; the SDK tells a guardrail no words that the model said beside it.

    Args:
        gate: The gate.
        stop: End the run with `ToolInputGuardrailTripwireTriggered`, and not only the call with a message to the model.
    """

    @tool_input_guardrail
    async def anydepth_gate(data: ToolInputGuardrailData) -> ToolGuardrailFunctionOutput:
        context = data.context
        messages = conversation(data.agent.instructions, context.turn_input)
        decision = await gate.adecide(messages, context.tool_name, context.tool_arguments)
        if decision.allowed:
            return ToolGuardrailFunctionOutput.allow(decision.report)
        if stop:
            return ToolGuardrailFunctionOutput.raise_exception(decision)
        return ToolGuardrailFunctionOutput.reject_content(f"blocked: {decision.why}", decision.report)

    return anydepth_gate


def conversation(instructions: Any, items: Sequence[Any]) -> list[dict[str, Any]]:
    """The items of a turn's input as the messages of a chat; instructions that are a function are left out."""
    start = [{"role": "system", "content": instructions}] if isinstance(instructions, str) else []
    return start + [message for item in items if (message := _message(item)) is not None]


def _message(item: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = item.get("type", "message")
    if kind == "function_call":
        function = {"name": item["name"], "arguments": item["arguments"]}
        call = {"id": item["call_id"], "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": item["call_id"], "content": _content(item["output"])}
    if kind != "message":
        return None  # thoughts, and what OpenAI's own tools did
    return {"role": item["role"], "content": _content(item["content"])}


def _content(content: Any) -> Any:
    """Text, or parts of text; a part of another kind is sent as it is, and the gate then refuses the call."""
    if isinstance(content, str):
        return content
    return [{"type": "text", "text": part["text"]} if "text" in part else part for part in content]
