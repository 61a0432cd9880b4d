"""Gate the tool calls of a LangChain agent (`create_agent`)."""

from collections.abc import Awaitable, Callable
from typing import Any

from anydepth_gate import Decision, Gate
from langchain.agents.middleware import AgentMiddleware
from langchain.agents.middleware.types import ToolCallRequest
from langchain_core.messages import ToolMessage, convert_to_openai_messages
from langgraph.types import Command

Ran = ToolMessage | Command[Any]


class GateToolCalls(AgentMiddleware):
    """Runs a tool only if the gate allows the call; a blocked one is a tool message with `status="error"`.

    Args:
        gate: The gate.
        system: The agent's system prompt, which is not among the messages of its state.
    """

    def __init__(self, gate: Gate, system: str | None = None) -> None:
        super().__init__()
        self._gate, self._system = gate, system

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Ran]) -> Ran:
        """Judge the call, then run it."""
        decision = self._gate.decide(*self._asked(request))
        return handler(request) if decision.allowed else _blocked(request, decision)

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Ran]]
    ) -> Ran:
        """The same for asyncio."""
        decision = await self._gate.adecide(*self._asked(request))
        return await handler(request) if decision.allowed else _blocked(request, decision)

    def _asked(self, request: ToolCallRequest) -> tuple[list[dict[str, Any]], str, dict[str, Any]]:
        messages: Any = convert_to_openai_messages(request.state["messages"], text_format="string")
        start = [{"role": "system", "content": self._system}] if self._system else []
        return [*start, *messages], request.tool_call["name"], request.tool_call["args"]


def _blocked(request: ToolCallRequest, decision: Decision) -> ToolMessage:
    call = request.tool_call
    return ToolMessage(f"blocked: {decision.why}", name=call["name"], tool_call_id=call["id"], status="error")
