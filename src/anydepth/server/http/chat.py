"""`POST /v1/chat/completions`."""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import Request
from starlette.responses import Response

from anydepth.errors import BadRequest
from anydepth.guard_overrides import apply_overrides
from anydepth.server.answer.compose import Delta
from anydepth.server.answer.toolcalls import ToolCall
from anydepth.server.engine.engine import Job, Sampling
from anydepth.server.http.prompting import chat_prompt, offered_tools, reading_of
from anydepth.server.http.requests import ChatRequest, CompletionRequest
from anydepth.server.http.writing import Shape, respond
from anydepth.server.service import Ask, Service


async def chat(request: Request, body: ChatRequest, service: Service) -> Response:
    """Answer a conversation under guard."""
    service.check_model(body.model)
    ask = await asyncio.to_thread(_ask, body, service, dict(request.headers))
    return await respond(request, body, ask, service, _SHAPE)


def sampling_of(body: ChatRequest | CompletionRequest) -> Sampling:
    """The sampling options of the request."""
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=None if body.top_k is None else max(0, body.top_k),
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        seed=body.seed,
        stop=body.stops,
    )


def spread(job: Job, count: int) -> tuple[Job, ...]:
    """The same job `count` times; a seed is counted on, so that the answers differ."""
    seed = job.sampling.seed
    if seed is None:
        return (job,) * count
    return tuple(replace(job, sampling=replace(job.sampling, seed=(seed + i) % 2**63)) for i in range(count))


def _ask(body: ChatRequest, service: Service, headers: dict[str, str]) -> Ask:
    facts, settings = service.engine.facts, service.settings
    if len(body.messages) > settings.limits.messages:
        limit = settings.limits.messages
        raise BadRequest(f"messages has {len(body.messages)} entries; this server takes {limit} at most", "messages")
    guard = apply_overrides(facts.guard, body.anydepth, settings.overrides)
    newer = body.max_completion_tokens is not None
    length = service.max_tokens(
        body.max_completion_tokens if newer else body.max_tokens, "max_completion_tokens" if newer else "max_tokens"
    )
    count = service.choices(body.n or 1)
    prompt = chat_prompt(facts.template, body)
    offered = offered_tools(body)
    reading = reading_of(
        facts.template,
        prompt,
        refusal=guard.refusal,
        stops=body.stops,
        tools=service.tool_format if offered else None,
        offered=offered,
        special=service.special,
        reasoning=settings.reasoning.release,
        one_call=body.parallel_tool_calls is False,
    )
    return Ask(
        "chat",
        spread(Job(prompt, guard, length, sampling_of(body)), count),
        (reading,) * count,
        tell_checks=body.anydepth is not None and body.anydepth.checks,
        messages=[message.model_dump(exclude_none=True) for message in body.messages],
        headers=headers,
        id=f"chatcmpl-{uuid.uuid4().hex}",
    )


def _message(deltas: Sequence[Delta]) -> dict[str, Any]:
    content = "".join(delta.content for delta in deltas)
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if reasoning := "".join(delta.reasoning for delta in deltas):
        message["reasoning_content"] = reasoning
    if calls := [_call(call) for delta in deltas for call in delta.calls]:
        message["tool_calls"] = calls
        message["content"] = content if content.strip() else None
    return {"message": message}


def _delta(piece: Delta, calls_before: int) -> dict[str, Any]:
    delta: dict[str, Any] = {}
    if piece.content:
        delta["content"] = piece.content
    if piece.reasoning:
        delta["reasoning_content"] = piece.reasoning
    if piece.calls:
        delta["tool_calls"] = [{"index": calls_before + i, **_call(call)} for i, call in enumerate(piece.calls)]
    return {"delta": delta}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


_SHAPE = Shape(
    "chat.completion",
    "chat.completion.chunk",
    _message,
    _delta,
    opening={"delta": {"role": "assistant", "content": ""}},
    tells=True,
)
