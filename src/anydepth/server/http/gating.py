"""`POST /v1/gate`: judge a tool call before an agent runs it."""

import asyncio
import time
import uuid
from dataclasses import replace
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from anydepth.audit.answer import error_kind, gate_record, number
from anydepth.config import GuardConfig
from anydepth.guard_overrides import apply_overrides
from anydepth.policy import policy_record
from anydepth.server.http.disconnect import while_there
from anydepth.server.http.prompting import call_arguments, chat_message
from anydepth.server.http.request_limits import check_entries
from anydepth.server.http.requests import GateRequest
from anydepth.server.service import Service
from anydepth.templates.proposed_call import CallPrompt
from anydepth.types import GateVerdict


async def gate(request: Request, body: GateRequest, service: Service) -> Response:
    """Judge the call by the check right after it; under `monitor` it is allowed whatever was found."""
    begun = time.time()
    model = service.check_model(body.model)
    check_entries(service.settings.limits, body.messages, "messages")
    guard = apply_overrides(service.engine.facts.guard, body.anydepth, service.settings.overrides)
    call = await asyncio.to_thread(_asked, body, service)
    found = await while_there(request, service.engine.gate(call, guard, control=body.control))
    name = f"gate-{uuid.uuid4().hex}"
    facts: dict[str, Any] = {"id": name, "model": model, "begun": begun, "allowed": allowed(found, guard)}
    if service.settings.audit.text:
        facts |= {"messages": body.model_dump(include={"messages"}, exclude_none=True)["messages"]}
        facts |= {"arguments": body.tool_call.function.arguments}
    record = gate_record(found, call.prompt, guard, **facts)
    await asyncio.to_thread(service.audit.run, service.audit.write, record)
    service.metrics.gates.labels(str(facts["allowed"]).lower(), found.reason).inc()
    for check in found.checks:
        service.metrics.stages.count(check)
    head = {"id": name, "object": "gate", "created": int(begun), "model": model}
    return JSONResponse({**head, **_result(found, guard)})


def allowed(found: GateVerdict, guard: GuardConfig) -> bool:
    """Whether the call may be run."""
    return not found.halt or guard.release == "monitor"


def _asked(body: GateRequest, service: Service) -> CallPrompt:
    messages = [chat_message(place, message) for place, message in enumerate(body.messages)]
    function = body.tool_call.function
    arguments = call_arguments(function.arguments, "tool_call.function.arguments")
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    return service.engine.facts.template.call_prompt(
        messages, {"name": function.name, "arguments": arguments}, tools=tools or None, written=service.tool_format
    )


def _result(found: GateVerdict, guard: GuardConfig) -> dict[str, Any]:
    """What the client reads; of an error the kind only, its text may quote the conversation."""
    may = allowed(found, guard)
    told = found if found.error is None else replace(found, error=error_kind(found.error))
    report = {
        "halted": not may,
        "would_halt": found.halt,
        "tool": found.tool,
        "score": number(found.score),
        "before": number(found.before),
        "statistic": number(found.statistic),
        "threshold": found.threshold,
        "depth": found.depth,
        "reason": found.reason,
        "policy": policy_record(guard.policy),
        "release": guard.release,
        "failed_checks": int(found.error is not None),
        "method": found.method,
    }
    return {"allowed": may, "why": told.why, "refusal": None if may else guard.refusal, "anydepth": report}
