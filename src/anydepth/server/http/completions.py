"""`POST /v1/completions`: go on with a text, without the chat template."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from starlette.responses import Response

from anydepth.errors import BadRequest
from anydepth.guard_overrides import apply_overrides
from anydepth.server.answer.compose import Delta, Reading
from anydepth.server.engine.engine import Job
from anydepth.server.http.chat import sampling_of, spread
from anydepth.server.http.requests import CompletionRequest
from anydepth.server.http.writing import Shape, respond
from anydepth.server.service import Ask, Service
from anydepth.templates.template import Prompt


async def complete(request: Request, body: CompletionRequest, service: Service) -> Response:
    """Go on with a text under guard. The Safety Tokens are read after it, whatever it is."""
    service.check_model(body.model)
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    ask = await asyncio.to_thread(_ask, body, prompts, service, dict(request.headers))
    return await respond(request, body, ask, service, _SHAPE)


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
        prompts=len(prompts),
        headers=headers,
        id=f"cmpl-{uuid.uuid4().hex}",
    )


def _text(deltas: Sequence[Delta]) -> dict[str, Any]:
    return {"text": "".join(delta.content for delta in deltas)}


_SHAPE = Shape("text_completion", "text_completion", _text, lambda delta, calls: _text([delta]))
