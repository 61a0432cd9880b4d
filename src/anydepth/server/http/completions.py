"""`POST /v1/completions`: go on with a text, without the chat template."""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from anydepth.errors import BadRequest
from anydepth.guard_overrides import apply_overrides
from anydepth.server.answer.compose import Delta, End, Reading
from anydepth.server.engine.engine import Job
from anydepth.server.http.chat import sampling_of, spread
from anydepth.server.http.disconnect import ClosingStream, while_there
from anydepth.server.http.http_errors import describe
from anydepth.server.http.requests import CompletionRequest
from anydepth.server.http.responses import guard_report, usage
from anydepth.server.http.sse import DONE, HEADERS, MEDIA_TYPE, sse
from anydepth.server.service import Ask, Piece, Service
from anydepth.templates.template import Prompt

if TYPE_CHECKING:
    from anydepth.types import CheckResult


async def complete(request: Request, body: CompletionRequest, service: Service) -> Response:
    """Go on with a text under guard. The Safety Tokens are read after it, whatever it is."""
    service.check_model(body.model)
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    ask = await asyncio.to_thread(_ask, body, prompts, service, dict(request.headers))
    pieces = service.run(ask)
    if not body.stream:
        return JSONResponse(await while_there(request, _collect(ask, service, pieces, len(prompts))))
    first = await while_there(request, anext(pieces))
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    stream = _stream(ask, service, pieces, first, len(prompts) if with_usage else 0)
    return ClosingStream(stream, pieces, media_type=MEDIA_TYPE, headers=HEADERS)


def _ask(body: CompletionRequest, prompts: list[str], service: Service, headers: dict[str, str]) -> Ask:
    facts, settings = service.engine.facts, service.settings
    guard = apply_overrides(facts.guard, body.anydepth, settings.overrides)
    length = service.max_tokens(body.max_tokens)
    count = body.n or 1
    service.choices(count * len(prompts), "n" if count > 1 else "prompt")
    jobs: list[Job] = []
    for place, text in enumerate(prompts):
        ids = tuple(facts.template.tokenizer(text)["input_ids"])
        if not text.strip() or not ids:
            name = "prompt" if isinstance(body.prompt, str) else f"prompt[{place}]"
            raise BadRequest(f"{name} is an empty text; give a text to go on with", name, "invalid_prompt")
        jobs += spread(Job(Prompt(ids), guard, length, sampling_of(body)), count)
    return Ask(
        "completions",
        tuple(jobs),
        (Reading(guard.refusal, body.stops),) * len(jobs),
        tell_checks=body.anydepth is not None and body.anydepth.checks,
        messages=prompts,
        headers=headers,
        id=f"cmpl-{uuid.uuid4().hex}",
    )


def _head(ask: Ask, service: Service) -> dict[str, Any]:
    return {"id": ask.id, "object": "text_completion", "created": ask.created, "model": service.engine.facts.model}


def _choice(index: int, text: str, finish: str | None, **extra: Any) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish, **extra}


async def _collect(ask: Ask, service: Service, pieces: AsyncGenerator[Piece, None], prompts: int) -> dict[str, Any]:
    texts: list[list[str]] = [[] for _ in ask.jobs]
    checks: list[list[CheckResult]] = [[] for _ in ask.jobs]
    ends: dict[int, End] = {}
    async with aclosing(pieces):
        async for index, piece in pieces:
            if isinstance(piece, End):
                ends[index] = piece
                continue
            texts[index].append(piece.content)
            if piece.check is not None:
                checks[index].append(piece.check)
    choices = []
    for index, job in enumerate(ask.jobs):
        report = guard_report(ends[index], job.guard, checks[index] if ask.tell_checks else None)
        choices.append(_choice(index, "".join(texts[index]), ends[index].finish_reason, anydepth=report))
    answers = [ends[index].answer for index in range(len(ask.jobs))]
    return {**_head(ask, service), "choices": choices, "usage": usage(answers, prompts)}


async def _stream(
    ask: Ask, service: Service, pieces: AsyncGenerator[Piece, None], first: Piece, usage_of: int
) -> AsyncGenerator[bytes, None]:
    head = _head(ask, service) | ({"usage": None} if usage_of else {})
    ends: dict[int, End] = {}
    async with aclosing(pieces):
        try:
            piece: Delta | End
            index, piece = first
            while True:
                if isinstance(piece, End):
                    ends[index] = piece
                    report = guard_report(piece, ask.jobs[index].guard)
                    yield sse({**head, "choices": [_choice(index, "", piece.finish_reason, anydepth=report)]})
                elif piece.content:
                    yield sse({**head, "choices": [_choice(index, piece.content, None)]})
                index, piece = await anext(pieces)
        except StopAsyncIteration:
            pass
        except Exception as error:  # the headers have left: the error is an event of the stream
            yield sse(describe(error)[1])
            return
    if usage_of:
        answers = [ends[index].answer for index in range(len(ask.jobs))]
        yield sse({**head, "choices": [], "usage": usage(answers, usage_of)})
    yield DONE
