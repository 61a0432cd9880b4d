"""Write what clients read of vLLM's own replies and of what the engine told of each answer."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from anydepth.backends.vllm.report import parse_stop_reason
from anydepth.server.failures import BadRequest
from anydepth.server.toolcalls import whole_arguments, whole_calls
from anydepth.server.vllm_ledger import Page, Told

Record = dict[str, Any]

_KEYS = {"policy": "policy", "release": "release", "checks": "checked", "failed_checks": "errors"}
_KEYS |= {"released_tokens": "released", "withheld_tokens": "withheld"}
_TRANSFERS = ("kv_transfer_params", "ec_transfer_params")


@dataclass(frozen=True, slots=True)
class Asked:
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


def refusal_of(page: Page) -> BadRequest | None:
    """Why the engine did not take the request, if it did not."""
    for told in page.values():
        if told.get("reason") == "refused":
            return BadRequest(str(told.get("error")), told.get("param"))
    return None


def guard_report(told: Told) -> Record:
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


_UNKNOWN: Told = {"halt": False, "reason": "clear"}
_UNTOLD: Told = {"halt": True, "reason": "error", "errors": 1}


def end_of(choice: Mapping[str, Any], told: Told | None, asked: Asked, *, called: bool) -> End:
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


def _parsed(reason: object) -> Told | None:
    try:
        return parse_stop_reason(reason)
    except ValueError:  # a client's stop string that begins like ours
        return None


def whole_reply(body: Record, asked: Asked, page: Page) -> Record:
    """A response that is not streamed."""
    withheld = 0
    for choice in body.get("choices") or ():
        called = asked.chat and bool(choice["message"].get("tool_calls"))
        end = end_of(choice, _told(page, asked, choice["index"]), asked, called=called)
        withheld += end.withheld
        if end.halted:
            _halt(choice, end, asked)
        elif called:
            _keep_whole_calls(choice, asked)
        _sign(choice, end)
    return _finished(body, withheld)


def _keep_whole_calls(choice: Record, asked: Asked) -> None:
    """Leave half calls of a message out of its calls: they are text."""
    message = choice["message"]
    empty = not (message["tool_calls"][-1].get("function") or {}).get("arguments")
    calls, text = whole_calls(message["tool_calls"], doubted=empty and _is_cut(choice, asked))
    message["tool_calls"] = calls
    if text:
        message["content"] = (message.get("content") or "") + text
    if not calls:
        _has_no_calls(choice)


def _has_no_calls(choice: Record) -> None:
    if choice.get("finish_reason") == "tool_calls":
        choice["finish_reason"] = "stop"


def _is_cut(choice: Record, asked: Asked) -> bool:
    """Whether an answer ended where its length or a stop string ended it, maybe in the middle of a call."""
    return choice.get("finish_reason") == "length" or choice.get("stop_reason") in asked.stops


def halted_reply(asked: Asked, page: Page) -> Record | None:
    """The response where vLLM failed to put one together, if all its answers were halted."""
    places = [_told(page, asked, index) for index in range(asked.prompts * asked.n)]
    if any(told is None or not told["halt"] for told in places):
        return None

    def empty() -> Record:
        return {"message": {"role": "assistant", "content": ""}} if asked.chat else {"text": ""}

    choices = [{"index": index, **empty(), "logprobs": None} for index in range(len(places))]
    kind = "chat.completion" if asked.chat else "text_completion"
    return whole_reply({**_head(asked, kind), "choices": choices}, asked, page)


def _halt(choice: Record, end: End, asked: Asked) -> None:
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


def _sign(choice: Record, end: End) -> None:
    """Write how the guard ended an answer."""
    if end.halted:
        choice["finish_reason"], choice["stop_reason"] = "content_filter", None
    choice["anydepth"] = end.report


def _finished(body: Record, withheld: int) -> Record:
    """Count withheld tokens, which were generated, as completion; leave out what is the engine's own business."""
    for name in _TRANSFERS:
        body.pop(name, None)
    if withheld and (usage := body.get("usage")):
        usage["completion_tokens"] = (usage.get("completion_tokens") or 0) + withheld
        usage["total_tokens"] = (usage.get("total_tokens") or 0) + withheld
    return body


def _told(page: Page, asked: Asked, index: int) -> Told | None:
    return page.get(divmod(index, asked.n))


def _head(asked: Asked, kind: str) -> Record:
    prefix = "chatcmpl" if asked.chat else "cmpl"
    return {"id": f"{prefix}-{asked.id}", "object": kind, "created": int(time.time()), "model": asked.model}


@dataclass(slots=True)
class _Voice:
    """One answer of a stream.

    Attributes:
        wrote: Whether it has text.
        calls: Its calls so far, by their `index`.
        settled: Whether its last call was whole before the answer's last chunk. vLLM completes half JSON in that one.
        ended: Whether it has ended.
    """

    wrote: bool = False
    calls: dict[int, Record] = field(default_factory=dict)
    settled: bool = False
    ended: bool = False


class StreamReply:
    """Rewrites the records of a stream, one by one.

    Tool calls are kept until their answer has ended unhalted, whatever the release mode, and then leave as a whole.
    """

    def __init__(self, asked: Asked, page: Page) -> None:
        self._asked, self._page = asked, page
        self._voices = [_Voice() for _ in range(asked.prompts * asked.n)]
        self._head = _head(asked, "chat.completion.chunk" if asked.chat else "text_completion")
        self._withheld, self._failed = 0, False

    def write(self, record: Record) -> list[Record]:
        """The records in place of one of vLLM's."""
        if "error" in record:
            self._failed = True
            return [record]
        choices = record.get("choices") or []
        self._head |= {name: record[name] for name in self._head if name in record}
        if not choices:
            rest = self.rest()  # an answer that vLLM left out ends before the usage is told
            return [*rest, _finished(record, self._withheld)]
        _finished(record, 0)
        return [{**record, "choices": [new]} for choice in choices for new in self._rewrite(choice)]

    def rest(self) -> list[Record]:
        """The ends of answers that vLLM left out: it has no chunk for one that was halted before its first token."""
        out: list[Record] = []
        for index, voice in enumerate(self._voices):
            if voice.ended or (self._failed and _told(self._page, self._asked, index) is None):
                continue
            choice = self._blank({"index": index, "logprobs": None, "finish_reason": "stop"})
            out += [{**self._head, "choices": [new]} for new in self._rewrite(choice)]
        return out

    def _rewrite(self, choice: Record) -> list[Record]:
        voice = self._voices[choice["index"]]
        if voice.ended:
            return []
        going_on = choice.get("finish_reason") is None
        called = self._take_calls(choice, voice)
        if called:
            arguments = voice.calls[max(voice.calls)]["function"]["arguments"]
            voice.settled = going_on and bool(arguments) and whole_arguments(arguments) is not None
        if going_on:
            voice.wrote = voice.wrote or bool(self._text(choice).strip())
            return [] if called and self._is_empty(choice) else [choice]
        voice.ended = True
        told = _told(self._page, self._asked, choice["index"])
        end = end_of(choice, told, self._asked, called=bool(voice.calls))
        self._withheld += end.withheld
        return self._halted(choice, end, voice) if end.halted else self._ended(choice, end, voice)

    def _halted(self, choice: Record, end: End, voice: _Voice) -> list[Record]:
        text = self._text(choice)
        out = []
        if end.known and not self._is_empty(choice):
            out.append({**choice, "finish_reason": None, "stop_reason": None})
            voice.wrote = voice.wrote or bool(text.strip())
        refusal = after("text" if voice.wrote else "") + self._asked.refusal
        plain = {"index": choice["index"], "logprobs": None, "finish_reason": None}
        out.append(self._blank(plain, refusal))
        last = self._blank(plain)
        _sign(last, end)
        return [*out, last]

    def _ended(self, choice: Record, end: End, voice: _Voice) -> list[Record]:
        out = []
        if voice.calls:
            found = [voice.calls[index] for index in sorted(voice.calls)]
            calls, text = whole_calls(found, doubted=_is_cut(choice, self._asked) and not voice.settled)
            delta = dict(choice["delta"])
            if text:
                delta["content"] = self._text(choice) + text
            if calls:
                delta["tool_calls"] = [{**call, "index": index} for index, call in enumerate(calls)]
            else:
                _has_no_calls(choice)
            out.append({**choice, "delta": delta, "finish_reason": None, "stop_reason": None})
            choice = self._blank({**choice, "logprobs": None})
            choice.pop("token_ids", None)
        _sign(choice, end)
        return [*out, choice]

    def _take_calls(self, choice: Record, voice: _Voice) -> bool:
        """Take parts of calls out of a chunk and put them together."""
        if not self._asked.chat:
            return False
        parts = choice["delta"].pop("tool_calls", None) or []
        for part in parts:
            call = voice.calls.setdefault(part.get("index") or 0, {"index": part.get("index") or 0, "function": {}})
            call |= {name: value for name, value in part.items() if name != "function" and value is not None}
            function = part.get("function") or {}
            if function.get("name"):
                call["function"]["name"] = function["name"]
            call["function"]["arguments"] = call["function"].get("arguments", "") + (function.get("arguments") or "")
        return bool(parts)

    def _text(self, choice: Record) -> str:
        return (choice["delta"].get("content") if self._asked.chat else choice.get("text")) or ""

    def _is_empty(self, choice: Record) -> bool:
        said = any(choice["delta"].values()) if self._asked.chat else choice.get("text")
        return not (said or choice.get("logprobs") or choice.get("token_ids"))

    def _blank(self, choice: Record, text: str = "") -> Record:
        """A chunk of an answer with nothing, or with this text, in it."""
        if not self._asked.chat:
            return {**choice, "text": text}
        return {**choice, "delta": {"content": text} if text else {}}
