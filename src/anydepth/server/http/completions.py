"""`POST /v1/completions`: go on with a text, without the chat template.

The Safety Tokens are read after it, whatever it is.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from anydepth.errors import BadRequest
from anydepth.guard_overrides import apply_overrides
from anydepth.server.answer.blocked import refused_text
from anydepth.server.answer.compose import Delta, End, Reading
from anydepth.server.engine.engine import Job
from anydepth.server.http.chat import sampling_of, spread
from anydepth.server.http.request_limits import answer_length, check_answers
from anydepth.server.http.requests import CompletionRequest
from anydepth.server.http.writing import Shape
from anydepth.server.service import Ask, Service
from anydepth.templates.template import Prompt


def _ask(body: CompletionRequest, service: Service, headers: dict[str, str]) -> Ask:
    facts, settings = service.engine.facts, service.settings
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    guard = apply_overrides(facts.guard, body.anydepth, settings.overrides)
    length = answer_length(settings.limits, body.max_tokens)
    count = body.n or 1
    check_answers(settings.limits, count, len(prompts))
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
        tell_checks=body.tells_checks,
        messages=prompts,
        prompts=len(prompts),
        headers=headers,
        id=f"cmpl-{uuid.uuid4().hex}",
    )


def _text(deltas: Sequence[Delta], end: End) -> dict[str, Any]:
    return {"text": "".join(delta.content for delta in deltas) + _refusal(end)}


def _refusal(end: End) -> str:
    return refused_text(end.refusal, wrote=end.wrote) if end.refusal else ""


COMPLETIONS = Shape(
    _ask,
    "text_completion",
    "text_completion",
    _text,
    lambda delta, calls: {"text": delta.content},
    lambda end: {"text": _refusal(end)},
)
