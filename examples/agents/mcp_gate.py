"""Gate the tool calls of an MCP server (mcp 2.x), whoever its client is."""

from typing import Any

from anydepth_gate import Gate
from mcp.server.context import CallNext, HandlerResult, ServerMiddleware, ServerRequestContext
from mcp_types import CallToolResult, TextContent


class GateToolCalls(ServerMiddleware[Any]):
    """Runs a tool only if the gate allows the call; a blocked one is an error result, which the client's model reads.

    Args:
        gate: The gate.
        purpose: What the server is for, as the words of a user: an MCP server does not see the conversation.
    """

    def __init__(self, gate: Gate, purpose: str) -> None:
        self._gate, self._messages = gate, [{"role": "user", "content": purpose}]

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Judge a `tools/call`, and pass everything else on."""
        if ctx.method != "tools/call":
            return await call_next(ctx)
        params = ctx.params or {}
        arguments = params.get("arguments")
        decision = await self._gate.adecide(
            self._messages, str(params.get("name")), {} if arguments is None else arguments
        )
        if decision.allowed:
            return await call_next(ctx)
        return CallToolResult(content=[TextContent(type="text", text=f"blocked: {decision.why}")], is_error=True)
