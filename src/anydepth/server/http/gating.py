"""`POST /v1/gate`: judge a tool call before an agent runs it."""

import asyncio
import time
import uuid
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from anydepth.audit.answer import gate_record
from anydepth.gate_report import allowed, gate_report
from anydepth.guard_overrides import apply_overrides
from anydepth.server.http.disconnect import while_there
from anydepth.server.http.prompting import gate_prompt
from anydepth.server.http.request_limits import check_entries
from anydepth.server.http.requests import GateRequest
from anydepth.server.service import Service


async def gate(request: Request, body: GateRequest, service: Service) -> Response:
    """Judge the call by the check right after it; under `monitor` it is allowed whatever was found."""
    begun = time.time()
    model = service.check_model(body.model)
    check_entries(service.settings.limits, body.messages, "messages")
    guard = apply_overrides(service.engine.facts.guard, body.anydepth, service.settings.overrides)
    call = await asyncio.to_thread(gate_prompt, service.engine.facts.template, body, service.tool_format)
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
    return JSONResponse({**head, **gate_report(found, guard)})
