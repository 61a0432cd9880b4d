"""`POST /v1/chat/completions`."""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from anydepth.guard_overrides import apply_overrides
from anydepth.server.answer.blocked import refused_delta, refused_message
from anydepth.server.answer.compose import Delta, End, ends_of_calls
from anydepth.server.answer.toolcalls import ToolCall
from anydepth.server.engine.engine import Job, Sampling
from anydepth.server.http.forms import grammar_for
from anydepth.server.http.prompting import chat_prompt, reading_of
from anydepth.server.http.request_limits import answer_length, check_answers, check_entries
from anydepth.server.http.requests import ChatRequest, CompletionRequest
from anydepth.server.http.writing import Shape
from anydepth.server.service import Ask, Service


def sampling_of(body: ChatRequest | CompletionRequest) -> Sampling:
    """The sampling options of the request."""
    same = body.model_dump(include={"temperature", "top_p", "min_p", "repetition_penalty", "seed"})
    return Sampling(**same, top_k=None if body.top_k is None else max(0, body.top_k), stop=body.stops)


def spread(job: Job, count: int) -> tuple[Job, ...]:
    """The same job `count` times; a seed is counted on, so that the answers differ."""
    seed = job.sampling.seed
    if seed is None:
        return (job,) * count
    return tuple(replace(job, sampling=replace(job.sampling, seed=(seed + i) % 2**63)) for i in range(count))


def _ask(body: ChatRequest, service: Service, headers: dict[str, str]) -> Ask:
    return chat_ask(body, service, headers, endpoint="chat", id=f"chatcmpl-{uuid.uuid4().hex}")


def chat_ask(body: ChatRequest, service: Service, headers: dict[str, str], *, endpoint: str, id: str) -> Ask:
    """What a chat request asks for; `endpoint` and `id` are those of the request that it came in."""
    facts, limits, count = service.engine.facts, service.settings.limits, body.n or 1
    check_entries(limits, body.messages, "messages")
    guard = apply_overrides(facts.guard, body.anydepth, service.settings.overrides)
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    length = answer_length(limits, getattr(body, name), name)
    check_answers(limits, count)
    prompt = chat_prompt(facts.template, body)
    grammar = grammar_for(service, body, prompt)
    reading = reading_of(service, body, prompt, guard.refusal, structured=grammar is not None)
    gated = service.settings.tools.gate and reading.markers.tools is not None
    call_ends = partial(ends_of_calls, reading, facts.end_token_ids) if gated else None
    return Ask(
        endpoint,
        spread(Job(prompt, guard, length, sampling_of(body), grammar, call_ends), count),
        (reading,) * count,
        tell_checks=body.tells_checks,
        messages=[message.model_dump(exclude_none=True) for message in body.messages],
        headers=headers,
        id=id,
    )


def _message(deltas: Sequence[Delta], end: End) -> dict[str, Any]:
    content = "".join(delta.content for delta in deltas)
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if end.refusal:
        message |= refused_message(content, end.refusal, structured=end.structured)
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


def _last(end: End) -> dict[str, Any]:
    if not end.refusal:
        return {"delta": {}}
    return {"delta": refused_delta(end.refusal, wrote=end.wrote, structured=end.structured)}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


CHAT = Shape(
    _ask,
    "chat.completion",
    "chat.completion.chunk",
    _message,
    _delta,
    _last,
    opening={"delta": {"role": "assistant", "content": ""}},
    tells=True,
)
