"""Turn the events of a guarded answer into what a client reads, piece by piece."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from anydepth.server.answer.segments import Markers, Segment, Segmenter
from anydepth.server.answer.stops import StopTrim
from anydepth.server.answer.toolcalls import ToolCall
from anydepth.text import TextStream
from anydepth.types import Answer, Checked, CheckResult, Event, Halted, Released

ReasoningRelease = Literal["as_answer", "whole", "hidden"]


@dataclass(frozen=True, slots=True)
class Delta:
    """What is added to an answer: text, thoughts, or calls; or a check that was made.

    `depth` is how far the release that brought the text goes; None for what was kept back until now.
    """

    content: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    check: CheckResult | None = None
    depth: int | None = None


@dataclass(frozen=True, slots=True)
class End:
    """The last piece: why the answer ended.

    Attributes:
        finish_reason: OpenAI's word for it.
        answer: The whole account.
        refusal: Text in place of what was withheld; empty for an answer that was not halted.
        wrote: Whether there is text before it.
        structured: Whether it had to be JSON or a call.
    """

    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]
    answer: Answer
    refusal: str = ""
    wrote: bool = False
    structured: bool = False


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
        one_call: Whether the client takes one call at most (`parallel_tool_calls: false`).
        structured: Whether the answer has to be JSON or a call: its text is kept until it has ended unhalted.
    """

    refusal: str
    stops: tuple[str, ...] = ()
    markers: Markers = field(default_factory=Markers)
    reasoning: ReasoningRelease = "as_answer"
    decode: Callable[[Sequence[int]], str] | None = None
    prefix: tuple[int, ...] = ()
    one_call: bool = False
    structured: bool = False


class Composer:
    """Writes one answer.

    Tool calls are kept until the answer has ended unhalted, whatever its release mode: agents run a call as soon as
    they have it, and a later halt could not take it back. So is the text of an answer that has to be JSON, half of
    which some clients take for whole. Thoughts that are released as a whole wait until a check
    that did not fail covers their last token: under `hold` that is so when they arrive, under `eager` it is not.

    Attributes:
        calls: The tool calls that are kept.
    """

    def __init__(self, reading: Reading) -> None:
        self.calls: list[ToolCall] = []
        self._reading = reading
        self._trim = StopTrim(reading.stops)
        looks = reading.markers.needed and reading.decode
        self._segmenter = Segmenter(reading.markers if looks else Markers())
        self._text = TextStream(looks, reading.prefix) if looks else None
        self._covered, self._depth = 0, 0
        self._waiting: list[tuple[int, Segment]] = []
        self._thoughts: list[str] = []
        self._kept: list[str] = []
        self._wrote = self._last_failed = False

    def write(self, event: Event) -> list[Delta | End]:
        """The pieces that this event adds."""
        if isinstance(event, Checked):
            self._last_failed = event.check.error is not None
            if not self._last_failed:
                self._covered = event.check.depth
            return [Delta(check=event.check), *self._let_go(self._covered)]
        if isinstance(event, Released):
            self._depth = max(self._depth, event.depth)
            deltas = self._read(self._text.push(event.token_ids) if self._text else event.text)
            return [replace(delta, depth=self._depth) for delta in deltas]
        return self._refuse() if isinstance(event, Halted) else self._finish(event.answer)

    def _read(self, text: str) -> list[Delta]:
        return self._take(self._segmenter.push(self._trim.push(text)))

    def _take(self, segments: Sequence[Segment]) -> list[Delta]:
        out: list[Delta] = []
        for segment in segments:
            if segment.kind == "content" and self._reading.structured:
                self._kept.append(segment.text)
            elif segment.kind == "content":
                self._wrote = self._wrote or bool(segment.text.strip())
                out.append(Delta(content=segment.text))
            elif segment.kind == "tools":
                self.calls += segment.calls
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

    def _refuse(self) -> list[Delta | End]:
        self._waiting.clear()
        self.calls.clear()
        if self._reading.structured:
            return []
        held = "" if self._text else self._trim.flush()
        self._wrote = self._wrote or bool(held.strip())
        return [Delta(content=held)] if held else []

    def _finish(self, answer: Answer) -> list[Delta | End]:
        structured = self._reading.structured
        if answer.halted:
            return [End(answer.finish_reason, answer, self._reading.refusal, self._wrote, structured)]
        last = self.rest()
        if not self._last_failed:
            last += self._let_go(float("inf"))
        if kept := "".join(self._kept).lstrip():  # what stands between thoughts and JSON
            last.append(Delta(content=kept))
        if not self.calls:
            return [*last, End(answer.finish_reason, answer, structured=structured)]
        reason = "tool_calls" if answer.finish_reason == "stop" else answer.finish_reason
        calls = self.calls[:1] if self._reading.one_call else self.calls
        return [*last, Delta(calls=tuple(calls)), End(reason, answer, structured=structured)]

    def rest(self) -> list[Delta]:
        """What was kept back in case that a marker or a stop string went on; nothing follows any more."""
        read = self._read(self._text.flush()) if self._text else []
        return [*read, *self._take([*self._segmenter.push(self._trim.flush()), *self._segmenter.flush()])]


def ends_of_calls(reading: Reading, end_token_ids: Collection[int], token_ids: tuple[int, ...]) -> list[int]:
    """After how many tokens of a whole answer each tool call that leaves with it ends.

    Args:
        reading: How the answer is read.
        end_token_ids: Tokens that end a turn, which are not part of the answer.
        token_ids: The answer.
    """
    composer, ends = Composer(reading), list[int]()
    length = len(token_ids) - (token_ids[-1:] != () and token_ids[-1] in end_token_ids)

    def note(count: int) -> None:
        if len(composer.calls) > len(ends):
            ends.extend([count] * (len(composer.calls) - len(ends)))

    for count, token in enumerate(token_ids[:length], start=1):
        composer.write(Released("", (token,), count))
        note(count)
    composer.rest()
    note(length)
    return ends[:1] if reading.one_call else ends


def has_calls(reading: Reading, token_ids: tuple[int, ...]) -> bool:
    """Whether a whole answer of these tokens has tool calls."""
    composer = Composer(reading)
    composer.write(Released("", token_ids, 0))
    composer.rest()
    return bool(composer.calls)
