"""Write what clients read of vLLM's own streams and of what the engine told of each answer."""

from dataclasses import dataclass, field

from anydepth.guard_report import GuardReport
from anydepth.server.answer.blocked import Record, refused_delta, refused_text
from anydepth.server.answer.toolcalls import whole_arguments, whole_calls
from anydepth.vllm.front.replies import (
    RequestedReply,
    end_of,
    finished,
    head_of,
    is_cut,
    sign,
    told_of,
    without_calls,
)
from anydepth.vllm.front.reports import ResponseReports


@dataclass(slots=True)
class _StreamedAnswer:
    """One answer of a stream.

    Attributes:
        wrote: Whether it has text.
        calls: Its calls so far, by their `index`.
        settled: Whether its last call was whole before the answer's last chunk. vLLM completes half JSON in that one.
        ended: Whether it has ended.
        blocked: Its report, if it was halted.
    """

    wrote: bool = False
    calls: dict[int, Record] = field(default_factory=dict)
    settled: bool = False
    ended: bool = False
    blocked: GuardReport | None = None


class StreamReply:
    """Rewrites the records of a stream, one by one.

    Tool calls are kept until their answer has ended unhalted, whatever the release mode, and then leave as a whole.

    Attributes:
        begun: Whether something was written that a client cannot be asked to forget: text, thoughts, calls, an error or
            the end of an answer that was not halted.
    """

    def __init__(self, asked: RequestedReply, page: ResponseReports) -> None:
        self._asked, self._page = asked, page
        self._voices = [_StreamedAnswer() for _ in range(asked.prompts * asked.n)]
        self._head = head_of(asked, "chat.completion.chunk" if asked.chat else "text_completion")
        self._withheld, self._failed = 0, False
        self.begun = False

    @property
    def blocked(self) -> GuardReport | None:
        """The report of the first answer, if all answers were halted before the stream had begun."""
        reports = [voice.blocked for voice in self._voices]
        return None if self.begun or None in reports else reports[0]

    def write(self, record: Record) -> list[Record]:
        """The records in place of one of vLLM's."""
        if "error" in record:
            self._failed = self.begun = True
            return [record]
        choices = record.get("choices") or []
        self._head |= {name: record[name] for name in self._head if name in record}
        if not choices:
            rest = self.rest()  # an answer that vLLM left out ends before the usage is told
            return [*rest, finished(record, self._withheld)]
        finished(record, 0)
        return [{**record, "choices": [new]} for choice in choices for new in self._rewrite(choice)]

    def rest(self) -> list[Record]:
        """The ends of answers that vLLM left out: it has no chunk for one that was halted before its first token."""
        out: list[Record] = []
        for index, voice in enumerate(self._voices):
            told = told_of(self._page, self._asked, index)
            if voice.ended or (self._failed and not (told and told["halted"])):
                continue  # after an error of vLLM's no answer ends as if it were whole, nor do its calls leave
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
            self.begun = self.begun or self._says(choice)
            return [] if called and self._is_empty(choice) else [choice]
        voice.ended = True
        told = told_of(self._page, self._asked, choice["index"])
        report, known = end_of(choice, told, self._asked, called=bool(voice.calls))
        self._withheld += report.withheld_tokens or 0
        if report.halted:
            voice.blocked = report
            return self._halted(choice, report, voice, known=known)
        self.begun = True
        return self._ended(choice, report, voice)

    def _halted(self, choice: Record, report: GuardReport, voice: _StreamedAnswer, *, known: bool) -> list[Record]:
        text = self._text(choice)
        out = []
        if known and not self._is_empty(choice):
            out.append({**choice, "finish_reason": None, "stop_reason": None})
            voice.wrote = voice.wrote or bool(text.strip())
            self.begun = self.begun or self._says(choice)
        last: Record = {"index": choice["index"], "logprobs": None, "finish_reason": None}
        refusal, wrote = self._asked.refusal, voice.wrote
        if self._asked.chat:
            last["delta"] = refused_delta(refusal, wrote=wrote, structured=self._asked.structured)
        else:
            last["text"] = refused_text(refusal, wrote=wrote)
        sign(last, report)
        return [*out, last]

    def _ended(self, choice: Record, report: GuardReport, voice: _StreamedAnswer) -> list[Record]:
        out = []
        if voice.calls:
            found = [voice.calls[index] for index in sorted(voice.calls)]
            calls, text = whole_calls(found, doubted=is_cut(choice, self._asked) and not voice.settled)
            delta = dict(choice["delta"])
            if text:
                delta["content"] = self._text(choice) + text
            if calls:
                delta["tool_calls"] = [{**call, "index": index} for index, call in enumerate(calls)]
            else:
                without_calls(choice)
            out.append({**choice, "delta": delta, "finish_reason": None, "stop_reason": None})
            choice = self._blank({**choice, "logprobs": None})
            choice.pop("token_ids", None)
        sign(choice, report)
        return [*out, choice]

    def _take_calls(self, choice: Record, voice: _StreamedAnswer) -> bool:
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
        return not (self._says(choice) or (self._asked.chat and choice["delta"].get("role")))

    def _says(self, choice: Record) -> bool:
        """Whether a chunk has something of the answer, and not its role alone."""
        if self._asked.chat:
            said = any(value for name, value in choice["delta"].items() if name != "role")
        else:
            said = choice.get("text")
        return bool(said or choice.get("logprobs") or choice.get("token_ids"))

    def _blank(self, choice: Record) -> Record:
        """A chunk of an answer with nothing in it."""
        return {**choice, "delta": {}} if self._asked.chat else {**choice, "text": ""}
