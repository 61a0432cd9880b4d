"""`POST /v1/chat/completions`."""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from anydepth.audit.answer import check_record
from anydepth.server.bounds import apply_overrides
from anydepth.server.compose import Delta, End
from anydepth.server.engine import Job, Sampling
from anydepth.server.failures import BadRequest, describe
from anydepth.server.gone import ClosingStream, while_there
from anydepth.server.prompting import chat_prompt, offered_tools, reading_of
from anydepth.server.replies import guard_report, usage
from anydepth.server.schema import ChatRequest, CompletionRequest
from anydepth.server.service import Ask, Piece, Service
from anydepth.server.sse import DONE, HEADERS, MEDIA_TYPE, sse
from anydepth.server.toolcalls import ToolCall

if TYPE_CHECKING:
    from anydepth.types import CheckResult


async def chat(request: Request, body: ChatRequest, service: Service) -> Response:
    """Answer a conversation under guard."""
    service.check_model(body.model)
    ask = await asyncio.to_thread(_ask, body, service, dict(request.headers))
    pieces = service.run(ask)
    if not body.stream:
        return JSONResponse(await while_there(request, _collect(ask, service, pieces)))
    first = await while_there(request, anext(pieces))  # before the headers: what cannot be done gets its own status
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    stream = _stream(ask, service, pieces, first, with_usage)
    return ClosingStream(stream, pieces, media_type=MEDIA_TYPE, headers=HEADERS)


def sampling_of(body: ChatRequest | CompletionRequest) -> Sampling:
    """How the request wants tokens to be drawn."""
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


class _Message:
    """One answer while it is put together."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.checks: list[CheckResult] = []
        self.end: End | None = None

    def add(self, piece: Delta | End) -> None:
        if isinstance(piece, End):
            self.end = piece
            return
        self.content.append(piece.content)
        self.reasoning.append(piece.reasoning)
        self.calls += [_call(call) for call in piece.calls]
        if piece.check is not None:
            self.checks.append(piece.check)

    def record(self) -> dict[str, Any]:
        content = "".join(self.content)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if reasoning := "".join(self.reasoning):
            message["reasoning_content"] = reasoning
        if self.calls:
            message["tool_calls"] = self.calls
            message["content"] = content if content.strip() else None
        return message


async def _collect(ask: Ask, service: Service, pieces: AsyncGenerator[Piece, None]) -> dict[str, Any]:
    messages = [_Message() for _ in ask.jobs]
    async with aclosing(pieces):
        async for index, piece in pieces:
            messages[index].add(piece)
    ends = [message.end for message in messages if message.end is not None]
    choices = [
        {
            "index": index,
            "message": message.record(),
            "logprobs": None,
            "finish_reason": end.finish_reason,
            "anydepth": guard_report(end, ask.jobs[index].guard, message.checks if ask.tell_checks else None),
        }
        for index, (message, end) in enumerate(zip(messages, ends, strict=True))
    ]
    return {**_head(ask, service, "chat.completion"), "choices": choices, "usage": usage([end.answer for end in ends])}


async def _stream(
    ask: Ask, service: Service, pieces: AsyncGenerator[Piece, None], first: Piece, with_usage: bool
) -> AsyncGenerator[bytes, None]:
    head = _head(ask, service, "chat.completion.chunk") | ({"usage": None} if with_usage else {})
    calls, answers = [0] * len(ask.jobs), []

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None, **extra: Any) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish, **extra}
        return sse({**head, "choices": [choice]})

    async with aclosing(pieces):
        for index in range(len(ask.jobs)):
            yield chunk(index, {"role": "assistant", "content": ""})
        try:
            async for index, piece in _after(first, pieces):
                if isinstance(piece, End):
                    answers.append(piece.answer)
                    yield chunk(index, {}, piece.finish_reason, anydepth=guard_report(piece, ask.jobs[index].guard))
                    continue
                if delta := _delta(piece, calls[index]):
                    calls[index] += len(piece.calls)
                    told: dict[str, Any] = {}
                    if ask.tell_checks and piece.depth is not None:
                        told["anydepth"] = {"depth": piece.depth}
                    yield chunk(index, delta, **told)
                elif piece.check is not None and ask.tell_checks:
                    yield chunk(index, {}, anydepth={"check": check_record(piece.check)})
        except Exception as error:  # the headers have left: the error is an event of the stream
            yield sse(describe(error)[1])
            return
    if with_usage:
        yield sse({**head, "choices": [], "usage": usage(answers)})
    yield DONE


def _delta(piece: Delta, calls_before: int) -> dict[str, Any]:
    delta: dict[str, Any] = {}
    if piece.content:
        delta["content"] = piece.content
    if piece.reasoning:
        delta["reasoning_content"] = piece.reasoning
    if piece.calls:
        delta["tool_calls"] = [{"index": calls_before + i, **_call(call)} for i, call in enumerate(piece.calls)]
    return delta


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _head(ask: Ask, service: Service, kind: str) -> dict[str, Any]:
    return {"id": ask.id, "object": kind, "created": ask.created, "model": service.engine.facts.model}


async def _after(first: Piece, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
    yield first
    async for piece in pieces:
        yield piece
