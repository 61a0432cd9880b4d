"""Gate the tool calls of an evaluation in Inspect AI: an approver."""

import json
from typing import Any

from anydepth_gate import Gate
from inspect_ai.approval import Approval, Approver, approver
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageTool
from inspect_ai.tool import ToolCall, ToolCallView

_READ = {"text", "reasoning"}


@approver(name="anydepth_gate")
def anydepth_gate(url: str | None = None, terminate: bool = False) -> Approver:
    """Approve a call if the gate allows it.

    Args:
        url: Where the server is; by default `$ANYDEPTH_URL`.
        terminate: End the sample at a blocked call; else the model reads why it was rejected, and goes on.
    """
    gate = Gate(url)

    async def approve(message: str, call: ToolCall, view: ToolCallView, history: list[ChatMessage]) -> Approval:
        refused = "terminate" if terminate else "reject"
        if unread := _kinds(history) - _READ:
            return Approval(decision=refused, explanation=f"messages with {', '.join(unread)} in them cannot be judged")
        asked = [_message(each) for each in history]
        if not asked or asked[-1]["role"] != "assistant":
            asked.append({"role": "assistant", "content": message})
        decision = await gate.adecide(asked, call.function, call.arguments)
        report = None if decision.report is None else {"anydepth": dict(decision.report)}
        return Approval(decision="approve" if decision.allowed else refused, explanation=decision.why, metadata=report)

    return approve


def _kinds(history: list[ChatMessage]) -> set[str]:
    """What the messages have in them."""
    return {part.type for each in history if not isinstance(each.content, str) for part in each.content}


def _message(message: ChatMessage) -> dict[str, Any]:
    """The text and the calls of a message as OpenAI writes them; thoughts are left out."""
    record: dict[str, Any] = {"role": message.role, "content": message.text}
    if isinstance(message, ChatMessageAssistant) and message.tool_calls:
        record["tool_calls"] = [_call(each) for each in message.tool_calls]
    if isinstance(message, ChatMessageTool):
        record["tool_call_id"] = message.tool_call_id
    return record


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function, "arguments": json.dumps(call.arguments)}
    return {"id": call.id, "type": "function", "function": function}
