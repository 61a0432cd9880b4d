"""Write what clients read of vLLM's own replies and of what the engine told of each answer."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from anydepth.errors import BadRequest
from anydepth.flow import doubts_calls
from anydepth.guard_report import GuardReport
from anydepth.server.answer.blocked import Record, refused_message, refused_text
from anydepth.server.answer.blocked import sign as sign_choice
from anydepth.server.answer.toolcalls import whole_calls
from anydepth.vllm.front.reports import EngineReport, ResponseReports
from anydepth.vllm.report_field import parse_stop_reason

_TRANSFERS = ("kv_transfer_params", "ec_transfer_params")


@dataclass(frozen=True, slots=True)
class RequestedReply:
    """What a request asks for, as far as its reply depends on it.

    Attributes:
        id: Id that the request has for vLLM.
        chat: Whether it is a chat; else a plain completion.
        model: Name of the model.
        prompts: Number of prompts.
        n: Answers a prompt.
        stops: Stop strings.
        refusal: Text in place of what is withheld.
        structured: Whether it is a chat that must answer with JSON or with a call.
        as_error: Whether a block is an error, where nothing has left yet.
        strict: Whether no token leaves before a check that did not fail covers it.
        watched: Whether the guard only watches the answer and never halts it (`monitor`).
    """

    id: str
    chat: bool
    model: str = ""
    prompts: int = 1
    n: int = 1
    stops: tuple[str, ...] = ()
    refusal: str = ""
    structured: bool = False
    as_error: bool = False
    strict: bool = True
    watched: bool = False


def refusal_of(page: ResponseReports) -> BadRequest | None:
    """Why the engine did not take the request, if it did not."""
    for told in page.values():
        if told.get("reason") == "refused":
            return BadRequest(str(told.get("error")), told.get("param"))
    return None


_UNKNOWN = GuardReport(halted=False, would_halt=False, leak_tokens=0)
_UNTOLD = GuardReport(halted=True, would_halt=True, reason="error", failed_checks=1)


def end_of(
    choice: Mapping[str, Any], told: EngineReport | None, asked: RequestedReply, *, called: bool
) -> tuple[GuardReport, bool]:
    """How an answer ended; one that the engine has not accounted for is not passed off as a guarded one.

    Stop strings are found in checked text by vLLM's front end, which then aborts the request, as it does for a client
    that goes: the engine tells nothing of those.

    Args:
        choice: What vLLM wrote of it.
        told: What the engine told of it.
        asked: What was asked.
        called: Whether it has tool calls. They do not leave if a check may have failed to see them, unless the guard
            only watches.

    Returns:
        The report, and False if the engine told nothing of an answer that it must have told something of.
    """
    reason = choice.get("stop_reason")
    if told is None and reason not in asked.stops:  # a client's stop string may look like a report of ours
        with suppress(ValueError):
            told = parse_stop_reason(reason)
    if told is not None:
        report = GuardReport.read(told)
        if called and not report.halted and doubts_calls(report.failed_checks or 0, str(report.release)):
            left = report.released_tokens
            report = replace(report, halted=True, would_halt=True, reason="error", leak_tokens=left)
        return report, True
    finish = choice.get("finish_reason")
    if (asked.strict or asked.watched or not called) and finish in ("stop", "tool_calls") and reason in asked.stops:
        return _UNKNOWN, True
    if finish == "abort" and not called:
        return _UNKNOWN, True
    return _UNTOLD, finish == "abort" or reason in asked.stops


def whole_reply(body: Record, asked: RequestedReply, page: ResponseReports) -> Record:
    """A response that is not streamed."""
    withheld = 0
    for choice in body.get("choices") or ():
        called = asked.chat and bool(choice["message"].get("tool_calls"))
        report, known = end_of(choice, told_of(page, asked, choice["index"]), asked, called=called)
        withheld += report.withheld_tokens or 0
        if report.halted:
            _halt(choice, asked, known=known)
        elif called:
            _keep_whole_calls(choice, asked)
        sign(choice, report)
    return finished(body, withheld)


def _keep_whole_calls(choice: Record, asked: RequestedReply) -> None:
    """Leave half calls of a message out of its calls: they are text."""
    message = choice["message"]
    empty = not (message["tool_calls"][-1].get("function") or {}).get("arguments")
    calls, text = whole_calls(message["tool_calls"], doubted=empty and is_cut(choice, asked))
    message["tool_calls"] = calls
    if text:
        message["content"] = (message.get("content") or "") + text
    if not calls:
        without_calls(choice)


def without_calls(choice: Record) -> None:
    """End an answer, none of whose calls leaves, as one that has no calls."""
    if choice.get("finish_reason") == "tool_calls":
        choice["finish_reason"] = "stop"


def is_cut(choice: Record, asked: RequestedReply) -> bool:
    """Whether an answer ended where its length or a stop string ended it, maybe in the middle of a call."""
    return choice.get("finish_reason") == "length" or choice.get("stop_reason") in asked.stops


def halted_reply(asked: RequestedReply, page: ResponseReports) -> Record | None:
    """The response where vLLM failed to put one together, if all its answers were halted."""
    places = [told_of(page, asked, index) for index in range(asked.prompts * asked.n)]
    if any(told is None or not told["halted"] for told in places):
        return None

    choices: list[Record] = []
    for index in range(len(places)):
        said = {"message": {"role": "assistant", "content": ""}} if asked.chat else {"text": ""}
        choices.append({"index": index, **said, "logprobs": None})
    kind = "chat.completion" if asked.chat else "text_completion"
    return whole_reply({**head_of(asked, kind), "choices": choices}, asked, page)


def _halt(choice: Record, asked: RequestedReply, *, known: bool) -> None:
    """Put the refusal behind what was released, or in its place; calls of a halted answer never leave."""
    place = choice["message"] if asked.chat else choice
    name = "content" if asked.chat else "text"
    for each in ("tool_calls", "function_call"):
        place.pop(each, None)
    if not known:
        place[name] = ""
        place.pop("reasoning", None)
    if not known or asked.structured:  # its text is not shown, so its tokens are not either
        choice["logprobs"] = None
        choice.pop("token_ids", None)
    text = place.get(name) or ""
    if asked.chat:
        place |= refused_message(text, asked.refusal, structured=asked.structured)
    else:
        place[name] = text + refused_text(asked.refusal, wrote=bool(text.strip()))


def sign(choice: Record, report: GuardReport) -> None:
    """Write how the guard ended an answer, in place of what the engine said of it."""
    if report.halted:
        choice["stop_reason"] = None
    sign_choice(choice, report)


def finished(body: Record, withheld: int) -> Record:
    """Count withheld tokens, which were generated, as completion; leave out what is the engine's own business."""
    for name in _TRANSFERS:
        body.pop(name, None)
    if withheld and (usage := body.get("usage")):
        usage["completion_tokens"] = (usage.get("completion_tokens") or 0) + withheld
        usage["total_tokens"] = (usage.get("total_tokens") or 0) + withheld
    return body


def told_of(page: ResponseReports, asked: RequestedReply, index: int) -> EngineReport | None:
    """What the engine told of an answer, by its place in the response."""
    return page.get(divmod(index, asked.n))


def head_of(asked: RequestedReply, kind: str) -> Record:
    """What every record of a response begins with."""
    prefix = "chatcmpl" if asked.chat else "cmpl"
    return {"id": f"{prefix}-{asked.id}", "object": kind, "created": int(time.time()), "model": asked.model}
