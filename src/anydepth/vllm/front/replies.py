"""Write what clients read of vLLM's own replies and of what the engine told of each answer."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anydepth.errors import BadRequest
from anydepth.server.answer.toolcalls import whole_calls
from anydepth.vllm.front.reports import EngineReport, ResponseReports
from anydepth.vllm.report_field import parse_stop_reason

Record = dict[str, Any]

_KEYS = {"policy": "policy", "release": "release", "checks": "checked", "failed_checks": "errors"}
_KEYS |= {"released_tokens": "released", "withheld_tokens": "withheld"}
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
    strict: bool = True
    watched: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """How an answer ended.

    Attributes:
        halted: True if it is to end with the refusal.
        report: Its `anydepth` object.
        withheld: Tokens that were generated and never left.
        known: False if the engine told nothing of an answer that it must have told something of.
    """

    halted: bool
    report: Record
    withheld: int = 0
    known: bool = True


def refusal_of(page: ResponseReports) -> BadRequest | None:
    """Why the engine did not take the request, if it did not."""
    for told in page.values():
        if told.get("reason") == "refused":
            return BadRequest(str(told.get("error")), told.get("param"))
    return None


def guard_report(told: EngineReport) -> Record:
    """The `anydepth` object of an answer, with the keys that the Transformers engine writes."""
    halted = bool(told["halt"])
    report = {
        "halted": halted,
        "would_halt": halted or told.get("reason") != "clear",
        "depth": told.get("depth"),
        "score": told.get("score"),
        "reason": told.get("reason"),
        **{name: told.get(key) for name, key in _KEYS.items()},
        "leak_tokens": told.get("released") if halted else 0,
    }
    if "checks" in told:
        report["timeline"] = told["checks"]
    return report


_UNKNOWN: EngineReport = {"halt": False, "reason": "clear"}
_UNTOLD: EngineReport = {"halt": True, "reason": "error", "errors": 1}


def end_of(choice: Mapping[str, Any], told: EngineReport | None, asked: RequestedReply, *, called: bool) -> End:
    """How an answer ended; one that the engine has not accounted for is not passed off as a guarded one.

    Stop strings are found in checked text by vLLM's front end, which then aborts the request, as it does for a client
    that goes: the engine tells nothing of those.

    Args:
        choice: What vLLM wrote of it.
        told: What the engine told of it.
        asked: What was asked.
        called: Whether it has tool calls. They do not leave if a check may have failed to see them, unless the guard
            only watches.
    """
    reason = choice.get("stop_reason")
    told = told if told is not None else _parsed(reason)
    if told is not None:
        halted = bool(told["halt"]) or (called and bool(told.get("errors")) and not asked.watched)
        if halted and not told["halt"]:
            told = {**told, "halt": True, "reason": "error"}
        return End(halted, guard_report(told), told.get("withheld") or 0)
    finish = choice.get("finish_reason")
    if (asked.strict or asked.watched or not called) and finish in ("stop", "tool_calls") and reason in asked.stops:
        return End(False, guard_report(_UNKNOWN))
    if finish == "abort" and not called:
        return End(False, guard_report(_UNKNOWN))
    return End(True, guard_report(_UNTOLD), known=finish == "abort" or reason in asked.stops)


def _parsed(reason: object) -> EngineReport | None:
    try:
        return parse_stop_reason(reason)
    except ValueError:  # a client's stop string that begins like ours
        return None


def whole_reply(body: Record, asked: RequestedReply, page: ResponseReports) -> Record:
    """A response that is not streamed."""
    withheld = 0
    for choice in body.get("choices") or ():
        called = asked.chat and bool(choice["message"].get("tool_calls"))
        end = end_of(choice, told_of(page, asked, choice["index"]), asked, called=called)
        withheld += end.withheld
        if end.halted:
            _halt(choice, end, asked)
        elif called:
            _keep_whole_calls(choice, asked)
        sign(choice, end)
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
    if any(told is None or not told["halt"] for told in places):
        return None

    def empty() -> Record:
        return {"message": {"role": "assistant", "content": ""}} if asked.chat else {"text": ""}

    choices = [{"index": index, **empty(), "logprobs": None} for index in range(len(places))]
    kind = "chat.completion" if asked.chat else "text_completion"
    return whole_reply({**head_of(asked, kind), "choices": choices}, asked, page)


def _halt(choice: Record, end: End, asked: RequestedReply) -> None:
    """Put the refusal behind what was released; calls of a halted answer never leave."""
    place = choice["message"] if asked.chat else choice
    name = "content" if asked.chat else "text"
    for each in ("tool_calls", "function_call"):
        place.pop(each, None)
    if not end.known:
        place[name] = ""
        place.pop("reasoning", None)
        choice["logprobs"] = None
        choice.pop("token_ids", None)
    text = place.get(name) or ""
    place[name] = text + after(text) + asked.refusal


def after(text: str) -> str:
    """What stands between released text and the refusal."""
    return "\n\n" if text.strip() else ""


def sign(choice: Record, end: End) -> None:
    """Write how the guard ended an answer."""
    if end.halted:
        choice["finish_reason"], choice["stop_reason"] = "content_filter", None
    choice["anydepth"] = end.report


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
