"""Turn the events of a guarded answer into what a client reads, piece by piece."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from typing import Literal

from anydepth.server.answer.segments import Markers, Segment, Segmenter
from anydepth.server.answer.stops import StopTrim
from anydepth.server.answer.toolcalls import ToolCall
from anydepth.text import TextStream
from anydepth.types import Answer, Checked, CheckResult, Event, Halted, Released, ReleaseMode, Verdict

ReasoningRelease = Literal["as_answer", "whole", "hidden"]


@dataclass(frozen=True, slots=True)
class Delta:
    """What is added to an answer: text, thoughts, or calls; or a check that was made.

    `depth` is how far the release that brought the text goes; None for a refusal, and for what was kept back until now.
    """

    content: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    check: CheckResult | None = None
    depth: int | None = None


@dataclass(frozen=True, slots=True)
class End:
    """The last piece: why the answer ended."""

    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]
    answer: Answer


@dataclass(frozen=True, slots=True)
class Reading:
    """How one answer is to be read.

    Attributes:
        refusal: Text in place of what is withheld.
        stops: Stop strings, which are not part of the text.
        markers: What sets thoughts and tool calls apart.
        reasoning: When thoughts may leave.
        decode: Tokens to text, special tokens included.
        prefix: Tokens of the client's prefill.
        release: The guard's release mode for this answer.
        one_call: Whether the client takes one call at most (`parallel_tool_calls: false`).
    """

    refusal: str
    stops: tuple[str, ...] = ()
    markers: Markers = field(default_factory=Markers)
    reasoning: ReasoningRelease = "as_answer"
    decode: Callable[[Sequence[int]], str] | None = None
    prefix: tuple[int, ...] = ()
    release: ReleaseMode = "hold"
    one_call: bool = False


class Composer:
    """Writes one answer.

    Tool calls are kept until the answer has ended unhalted, whatever its release mode: agents run a call as soon as
    they have it, and a later halt could not take it back. Thoughts that are released as a whole wait until a check
    that did not fail covers their last token: under `hold` that is so when they arrive, under `eager` it is not.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._trim = StopTrim(reading.stops)
        looks = reading.markers.needed and reading.decode is not None
        self._segmenter = Segmenter(reading.markers) if looks else None
        self._text = TextStream(reading.decode, reading.prefix) if looks and reading.decode else None
        self._covered, self._depth = 0, 0
        self._calls: list[ToolCall] = []
        self._waiting: list[tuple[int, Segment]] = []
        self._thoughts: list[str] = []
        self._last: list[Delta] = []
        self._wrote = self._last_failed = False

    def write(self, event: Event) -> list[Delta | End]:
        """The pieces that this event adds."""
        if isinstance(event, Checked):
            return [Delta(check=event.check), *self._checked(event.check)]
        if isinstance(event, Released):
            self._depth = max(self._depth, event.depth)
            deltas = self._read(self._text.push(event.token_ids) if self._text else event.text)
            return [replace(delta, depth=self._depth) for delta in deltas]
        if isinstance(event, Halted):
            self._last.clear()  # the account of a finished answer could not be kept: its last words do not leave
            return [*self._refuse()]
        return self._finish(event.answer)

    def _checked(self, check: CheckResult) -> list[Delta]:
        self._last_failed = check.error is not None
        if not self._last_failed:
            self._covered = check.depth
        return self._let_go(self._covered)

    def _read(self, text: str) -> list[Delta]:
        text = self._trim.push(text)
        if self._segmenter is None:
            self._wrote = self._wrote or bool(text.strip())
            return [Delta(content=text)] if text else []
        return self._take(self._segmenter.push(text))

    def _take(self, segments: Sequence[Segment]) -> list[Delta]:
        out: list[Delta] = []
        for segment in segments:
            if segment.kind == "content":
                self._wrote = self._wrote or bool(segment.text.strip())
                out.append(Delta(content=segment.text))
            elif segment.kind == "tools":
                self._calls += segment.calls
            elif self._reading.reasoning == "whole":
                self._waiting.append((self._depth, segment))
            elif self._reading.reasoning == "as_answer" and segment.text:
                out.append(Delta(reasoning=segment.text))
        return out + self._let_go(self._covered)

    def _let_go(self, covered: float) -> list[Delta]:
        """Write the thoughts that wait and are covered by a check."""
        out: list[Delta] = []
        while self._waiting and self._waiting[0][0] <= covered:
            segment = self._waiting.pop(0)[1]
            self._thoughts.append(segment.text)
            if segment.closes and (text := "".join(self._thoughts)):
                self._thoughts.clear()
                out.append(Delta(reasoning=text))
        return out

    def _refuse(self) -> list[Delta]:
        self._waiting.clear()
        self._calls.clear()
        held = self._trim.flush() if self._segmenter is None else ""
        return [Delta(content=held + ("\n\n" if self._wrote or held.strip() else "") + self._reading.refusal)]

    def settle(self, answer: Answer) -> Answer:
        """The answer as the client is about to get it; called once, before `write` of its end.

        Where the guard fails open, text goes on after a failed check. A call that such a check may have missed is not
        handed over even then: the answer ends with the refusal instead, and its account has to say so.
        """
        if answer.halted:
            return answer
        if self._text is not None and (rest := self._text.flush()):
            self._last += self._read(rest)
        self._last += self._rest()
        if not self._last_failed:
            self._last += self._let_go(float("inf"))
        if not self._calls or not answer.verdict.errors or self._reading.release == "monitor":
            return answer
        self._last += self._refuse()
        verdict = Verdict(True, nan, answer.verdict.depth, "error", answer.verdict.errors)
        return replace(answer, finish_reason="content_filter", verdict=verdict)

    def _finish(self, answer: Answer) -> list[Delta | End]:
        if answer.halted or not self._calls:
            return [*self._last, End(answer.finish_reason, answer)]
        reason = "tool_calls" if answer.finish_reason == "stop" else answer.finish_reason
        calls = self._calls[:1] if self._reading.one_call else self._calls
        return [*self._last, Delta(calls=tuple(calls)), End(reason, answer)]

    def _rest(self) -> list[Delta]:
        """What the trimmer and the segmenter were keeping back."""
        text = self._trim.flush()
        if self._segmenter is None:
            return [Delta(content=text)] if text else []
        return self._take([*self._segmenter.push(text), *self._segmenter.flush()])
