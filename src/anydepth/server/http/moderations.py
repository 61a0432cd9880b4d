"""`POST /v1/moderations`: scan conversations that are finished."""

import asyncio
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from anydepth.audit.answer import check_record, number, scan_record
from anydepth.config import GuardConfig
from anydepth.errors import BadRequest
from anydepth.guard_overrides import apply_overrides
from anydepth.policy import policy_record, unweighted
from anydepth.server.http.disconnect import while_there
from anydepth.server.http.request_limits import check_entries
from anydepth.server.http.requests import ModerationRequest, ScanMessage
from anydepth.server.service import Service
from anydepth.templates.template import ChatTemplate, Prompt
from anydepth.text import TextStream
from anydepth.types import CheckResult, ScanResult

CATEGORY = "harmful"


async def moderate(request: Request, body: ModerationRequest, service: Service) -> Response:
    """Scan each input: an answer (a last message of the assistant) at all depths in one pass, else depth 0.

    A request that no answer follows is judged by its score without the policy's weight (`unweighted`): a weight that
    leaves the verdict to the answer would let every request pass.

    Each scan is recorded and counted once it was made, whatever becomes of those that follow.
    """
    begun = time.time()
    model = service.check_model(body.model)
    guard = apply_overrides(service.engine.facts.guard, body.anydepth, service.settings.overrides)
    asked = await asyncio.to_thread(_asked, body, service)
    alone = replace(guard, policy=unweighted(guard.policy))
    guards = [guard if prompt.prefill else alone for prompt, _ in asked]
    tell, template = body.tells_checks, service.engine.facts.template
    name = f"modr-{uuid.uuid4().hex}"

    async def scanned(index: int, each: GuardConfig) -> dict[str, Any]:
        prompt, words = asked[index]
        scan = await service.engine.scan(prompt, each)
        facts: dict[str, Any] = {"id": name, "choice": index, "model": model, "begun": begun}
        if service.settings.audit.text:
            facts["messages"] = words
        record = scan_record(scan, prompt, each, **facts)
        await asyncio.to_thread(service.audit.run, service.audit.write, record)
        result = _result(scan, policy_record(each.policy), tell)
        if tell and prompt.prefill:
            result["anydepth"]["windows"] = await asyncio.to_thread(scan_windows, template, prompt, scan.checks)
        service.metrics.scans.labels(str(result["flagged"]).lower()).inc()
        for check in scan.checks:
            service.metrics.stages.count(check)
        return result

    async def scan_all() -> list[dict[str, Any]]:
        return [await scanned(index, each) for index, each in enumerate(guards)]

    return JSONResponse({"id": name, "model": model, "results": await while_there(request, scan_all())})


def _asked(body: ModerationRequest, service: Service) -> list[tuple[Prompt, Any]]:
    """What is to be scanned, each with its words as they were sent."""
    template = service.engine.facts.template
    if isinstance(body.input, str):
        return [(template.prompt(body.input), body.input)]
    check_entries(service.settings.limits, body.input, "input")
    words: list[Any] = [item if isinstance(item, str) else item.model_dump(exclude_none=True) for item in body.input]
    messages = [isinstance(item, ScanMessage) for item in body.input]
    if all(messages):
        return [(template.prompt(words), words)]
    if any(messages):
        raise BadRequest("input mixes messages and texts; send one conversation, or a list of texts", "input")
    texts = [each if isinstance(each, str) else each["text"] for each in words]
    for place, text in enumerate(texts):
        if not text.strip():
            raise BadRequest(f"input[{place}] is an empty text; leave it out", f"input[{place}]", "invalid_prompt")
    return [(template.prompt(text), each) for text, each in zip(texts, words, strict=True)]


def _result(scan: ScanResult, policy: dict[str, Any], tell: bool) -> dict[str, Any]:
    """A check that failed flags the conversation as well: the guard fails closed."""
    verdict = scan.verdict
    score = number(verdict.score)
    report: dict[str, Any] = {
        "depth": verdict.depth,
        "score": score,
        "reason": verdict.reason,
        "policy": policy,
        "method": scan.method,
        "notes": list(scan.notes),
    }
    if tell:
        report["timeline"] = [check_record(check) for check in scan.checks]
    return {
        "flagged": verdict.halt,
        "categories": {CATEGORY: verdict.halt},
        "category_scores": {CATEGORY: 1.0 if score is None else score},
        "anydepth": report,
    }


def scan_windows(template: ChatTemplate, prompt: Prompt, checks: Sequence[CheckResult]) -> list[dict[str, Any]]:
    """The text of the scanned answer between one checked depth and the next."""

    def decode(ids: Sequence[int]) -> str:
        return template.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    answer = prompt.ids[prompt.start :]
    depths = sorted({0, len(answer), *(check.depth for check in checks)})
    windows: list[dict[str, Any]] = []
    stream = TextStream(decode)
    for start, stop in pairwise(depths):
        ids = answer[start:stop]
        text = stream.push(ids) if stop < len(answer) else stream.push(ids) + stream.flush()
        windows.append({"start": start, "stop": stop, "text": text})
        if not decode(ids).endswith("\N{REPLACEMENT CHARACTER}"):
            stream = TextStream(decode, ids)  # one window of context is enough: the work grows with the text only
    return windows
