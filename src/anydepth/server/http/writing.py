"""Write the answers of one request, as one record or as a stream: for both endpoints, in the shape of each."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from anydepth.audit.answer import check_record
from anydepth.guard_report import GuardReport
from anydepth.server.answer.blocked import sign
from anydepth.server.answer.compose import Delta, End
from anydepth.server.answer.usage import token_counts
from anydepth.server.http.disconnect import ClosingStream, while_there
from anydepth.server.http.http_errors import blocked, describe
from anydepth.server.http.requests import ChatRequest, CompletionRequest
from anydepth.server.http.sse import DONE, HEADERS, MEDIA_TYPE, sse
from anydepth.server.service import Ask, Piece, Service


@dataclass(frozen=True, slots=True)
class Shape:
    """How an endpoint reads its requests and writes its answers.

    Attributes:
        ask: What a request asks for, of its body, the service and the request's headers.
        whole: The `object` of a whole reply.
        chunk: The `object` of a record of a stream.
        message: What a choice of a whole reply has of an answer.
        delta: What a choice of a stream's record has of a piece; the number is that of the answer's calls before it.
        last: What the last choice of a stream has of an answer's end.
        opening: What each answer of a stream begins with, or None.
        tells: Whether a stream shows every check to a client that asks for them.
    """

    ask: Callable[[Any, Service, dict[str, str]], Ask]
    whole: str
    chunk: str
    message: Callable[[Sequence[Delta], End], dict[str, Any]]
    delta: Callable[[Delta, int], dict[str, Any]]
    last: Callable[[End], dict[str, Any]]
    opening: dict[str, Any] | None = None
    tells: bool = False


async def respond(request: Request, body: ChatRequest | CompletionRequest, service: Service, shape: Shape) -> Response:
    """Answer a request under guard."""
    service.check_model(body.model)
    ask = await asyncio.to_thread(shape.ask, body, service, dict(request.headers))
    pieces = service.run(ask)
    if not body.stream:
        return await while_there(request, _collect(ask, service, shape, pieces))
    # Before the headers: what cannot be done gets its own status.
    first = await while_there(request, opening(pieces, wait=service.waits_for_text))
    ends = {index: piece for index, piece in first if isinstance(piece, End)}
    if (error := blocked_instead(ask, service, ends)) is not None:
        await pieces.aclose()
        return error
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    stream = _stream(ask, service, shape, pieces, first, with_usage)
    return ClosingStream(stream, pieces, media_type=MEDIA_TYPE, headers=HEADERS)


async def opening(pieces: AsyncGenerator[Piece, None], *, wait: bool) -> list[Piece]:
    """The first piece; with `wait` all pieces up to the first that cannot be taken back, or to the end."""
    found: list[Piece] = []
    async for index, piece in pieces:
        found.append((index, piece))
        said = not piece.refusal if isinstance(piece, End) else piece.content or piece.reasoning or piece.calls
        if said or not wait:
            break
    return found


def blocked_instead(ask: Ask, service: Service, ends: Mapping[int, End]) -> Response | None:
    """The error in place of a reply whose answers all have been halted, where the operator wants one."""
    if service.settings.blocked.style != "error" or len(ends) < len(ask.jobs):
        return None
    if not all(end.refusal for end in ends.values()):
        return None
    return blocked(report_of(ask, 0, ends[0], tell=ask.tell_checks).record(), ends[0].refusal)


def report_of(ask: Ask, index: int, end: End, *, tell: bool) -> GuardReport:
    """How the guard ended an answer; `tell` adds every check."""
    return GuardReport.of(end.answer, ask.jobs[index].guard, tell=tell)


async def _collect(ask: Ask, service: Service, shape: Shape, pieces: AsyncGenerator[Piece, None]) -> Response:
    deltas: list[list[Delta]] = [[] for _ in ask.jobs]
    ends: dict[int, End] = {}
    async with aclosing(pieces):
        async for index, piece in pieces:
            if isinstance(piece, End):
                ends[index] = piece
            else:
                deltas[index].append(piece)
    if (error := blocked_instead(ask, service, ends)) is not None:
        return error
    choices: list[dict[str, Any]] = []
    for index, end in sorted(ends.items()):
        choice = _choice(index, shape.message(deltas[index], end), end.finish_reason)
        sign(choice, report_of(ask, index, end, tell=ask.tell_checks))
        choices.append(choice)
    return JSONResponse({**_head(ask, service, shape.whole), "choices": choices, "usage": usage_of(ask, ends)})


async def _stream(
    ask: Ask,
    service: Service,
    shape: Shape,
    pieces: AsyncGenerator[Piece, None],
    first: Sequence[Piece],
    with_usage: bool,
) -> AsyncGenerator[bytes, None]:
    head = _head(ask, service, shape.chunk) | ({"usage": None} if with_usage else {})
    tells = shape.tells and ask.tell_checks
    calls, ends = [0] * len(ask.jobs), dict[int, End]()
    nothing = shape.delta(Delta(), 0)

    def chunk(index: int, body: dict[str, Any], **extra: Any) -> bytes:
        return sse({**head, "choices": [{**_choice(index, body, None), **extra}]})

    async with aclosing(pieces):
        if shape.opening is not None:
            for index in range(len(ask.jobs)):
                yield chunk(index, shape.opening)
        try:
            async for index, piece in after(first, pieces):
                if isinstance(piece, End):
                    ends[index] = piece
                    last = _choice(index, shape.last(piece), piece.finish_reason)
                    sign(last, report_of(ask, index, piece, tell=False))
                    yield sse({**head, "choices": [last]})
                elif (body := shape.delta(piece, calls[index])) != nothing:
                    calls[index] += len(piece.calls)
                    told: dict[str, Any] = {}
                    if tells and piece.depth is not None:
                        told["anydepth"] = {"depth": piece.depth}
                    yield chunk(index, body, **told)
                elif piece.check is not None and tells:
                    yield chunk(index, nothing, anydepth={"check": check_record(piece.check)})
        except Exception as error:  # the headers have left: the error is an event of the stream
            yield sse(describe(error)[1])
            return
    if with_usage:
        yield sse({**head, "choices": [], "usage": usage_of(ask, ends)})
    yield DONE


def _choice(index: int, body: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {"index": index, **body, "logprobs": None, "finish_reason": finish}


def _head(ask: Ask, service: Service, kind: str) -> dict[str, Any]:
    return {"id": ask.id, "object": kind, "created": ask.created, "model": service.engine.facts.model}


async def after(first: Sequence[Piece], pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
    """The pieces that were taken already, and those that follow."""
    for piece in first:
        yield piece
    async for piece in pieces:
        yield piece


def usage_of(ask: Ask, ends: dict[int, End]) -> dict[str, int]:
    """Token counts of a request: each of its prompts counts once, however many answers it has."""
    counts = [token_counts(ends[index].answer) for index in range(len(ask.jobs))]
    each = len(counts) // ask.prompts
    asked = sum(max(prompt for prompt, _ in counts[at : at + each]) for at in range(0, len(counts), each))
    written = sum(generated for _, generated in counts)
    return {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written}
