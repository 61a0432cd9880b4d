"""Make the outputs that vLLM's engine sends to its front ends."""

from typing import Any

from anydepth.extras import require

_engine: Any = require("vllm.v1.engine", extra="vllm")
FinishReason: Any = _engine.FinishReason


def core_output(request: Any, finish: Any, reason: Any, tokens: list[int] | None = None, **fields: Any) -> Any:
    """One `EngineCoreOutput` of a request: tokens that leave, and how the answer ended, if it has."""
    fields |= {"finish_reason": finish, "stop_reason": reason}
    return _engine.EngineCoreOutput(request_id=request.request_id, new_token_ids=tokens or [], **fields)


def outputs_of(outputs: dict[int, Any], client: int) -> list[Any]:
    """The list of outputs of one client in those of a step; it is added if there is none."""
    return outputs.setdefault(client, _engine.EngineCoreOutputs(outputs=[])).outputs
