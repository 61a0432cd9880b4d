"""Tell thoughts, tool calls and the answer apart in the text of one answer while it arrives."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from anydepth.server.answer.stops import held_back
from anydepth.server.answer.toolcalls import ToolCall, parse_calls
from anydepth.templates.call_formats import ToolFormat
from anydepth.templates.published import Channel
from anydepth.templates.template import ChatTemplate, Prompt


class SpecialTokens:
    """The special tokens of a tokenizer as text, ready to be taken out; some tokenizers have a thousand."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts = frozenset(texts)
        longest_first = sorted(self.texts, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._beginnings = frozenset(text[:size] for text in self.texts for size in range(1, len(text)))
        self._reach = max(map(len, self._beginnings), default=0)

    @classmethod
    def of(cls, tokenizer: object) -> "SpecialTokens":
        """Those that `decode` would skip."""
        names = set(map(str, getattr(tokenizer, "all_special_tokens", None) or ()))
        # Some end-of-turn tokens are marked as special in the vocabulary only, which is what `decode` goes by.
        added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", None) or {}
        return cls(names | {str(token) for token in added.values() if getattr(token, "special", False)})

    def taken_out(self, text: str, *, but: Collection[str] = ()) -> str:
        """The text without the special tokens."""
        return self._pattern.sub(lambda found: found[0] if found[0] in but else "", text)

    def held_back(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of one."""
        sizes = range(min(self._reach, len(text)), 0, -1)
        return next((size for size in sizes if text[-size:] in self._beginnings), 0)


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of an answer.

    Attributes:
        kind: `content`, `reasoning` or `tools`.
        text: The text of it.
        calls: The tool calls, if it is that.
        closes: True for the last piece of a section of thoughts.
    """

    kind: Literal["content", "reasoning", "tools"]
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    closes: bool = False


@dataclass(frozen=True, slots=True)
class Markers:
    """What to look for in one answer.

    Attributes:
        channel: How the template sets thoughts apart, or None.
        tools: How calls are written, or None if the request offers no tools.
        offered: Names of the tools that the request offers.
        special: Special tokens, which are not part of what a client reads.
        thinking: True if the prompt ends inside a section of thoughts.
        structured: True if the answer has to be JSON or a call: a marker in JSON is a part of it.
    """

    channel: Channel | None = None
    tools: ToolFormat | None = None
    offered: frozenset[str] = frozenset()
    special: SpecialTokens = field(default_factory=SpecialTokens)
    thinking: bool = False
    structured: bool = False

    @property
    def needed(self) -> bool:
        """True if the text has to be looked at with its special tokens in it."""
        return self.channel is not None or self.tools is not None


Mode = Literal["answer", "thoughts", "between", "call", "bare", "json"]


class Segmenter:
    """Splits text with special tokens in it; what may be the beginning of a marker waits."""

    def __init__(self, markers: Markers) -> None:
        self._markers, self._held = markers, ""
        self._mode: Mode = "thoughts" if markers.thinking else "answer"
        self._started = False

    def push(self, text: str) -> list[Segment]:
        """The pieces that this text completes."""
        self._held += text
        out: list[Segment] = []
        while self._step(out):
            pass
        return out

    def flush(self) -> list[Segment]:
        """The rest, once the answer has ended; a call without its end is a call if it can be read as one."""
        out = self.push("")
        text, self._held = self._held, ""
        return out + self._section(text, closed=False)

    def _step(self, out: list[Segment]) -> bool:
        """Take one marker out of what is held; False if there is none."""
        channel, tools = self._markers.channel, self._markers.tools
        if self._mode in ("bare", "json"):
            return False
        if self._mode == "answer" and tools is not None and not tools.open and not self._started:
            begin = self._held.lstrip().removeprefix(tools.prefix or "\0").lstrip()
            if begin[:1] in ("{", "[") and begin:
                self._mode = "bare"
                return False
            if not begin or (tools.prefix and tools.prefix.startswith(self._held.strip())):
                return False
        ends = self._ends(channel, tools)
        if self._mode == "answer" and self._markers.structured and _is_json(self._held.lstrip(), ends):
            self._mode = "json"
            return False
        found = [(at, marker) for marker in ends if (at := self._held.find(marker)) >= 0]
        if not found:
            self._pass_on(out, ends)
            return False
        at, marker = min(found, key=lambda each: (each[0], -len(each[1])))
        before, self._held = self._held[:at], self._held[at + len(marker) :]
        out += self._section(before, closed=True)
        self._mode = ends[marker]
        return True

    def _ends(self, channel: Channel | None, tools: ToolFormat | None) -> dict[str, Mode]:
        """Marker -> what follows it, in the present mode."""
        if self._mode == "call":
            assert tools is not None
            return {tools.close: "answer"} if tools.close else {}
        if self._mode == "thoughts":
            assert channel is not None
            return {channel.think_close: "between" if channel.answer_open else "answer"}
        ends: dict[str, Mode] = {}
        if channel is not None:
            ends[channel.think_open] = "thoughts"
            if channel.answer_open:
                ends[channel.answer_open] = "answer"
        if tools is not None and tools.open and self._mode == "answer":
            ends[tools.open] = "call"
        return ends

    def _pass_on(self, out: list[Segment], ends: Collection[str]) -> None:
        """Let go of what cannot be part of a marker any more."""
        if self._mode == "call":
            return
        keep = max(held_back(self._held, tuple(ends)), self._markers.special.held_back(self._held))
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        if self._mode == "thoughts" and (text := self._clean(text)):
            out.append(Segment("reasoning", text))
        elif self._mode == "answer":
            out += self._content(text)

    def _section(self, text: str, *, closed: bool) -> list[Segment]:
        """The rest of a section, which a marker or the end of the answer ends."""
        if self._mode in ("call", "bare"):
            return self._calls(text, closed=closed)
        if self._mode == "thoughts":
            return [Segment("reasoning", self._clean(text), closes=True)]
        return self._content(text) if self._mode in ("answer", "json") else []

    def _calls(self, text: str, *, closed: bool) -> list[Segment]:
        """The calls, or the text as it was written if it is not calls."""
        tools = self._markers.tools
        assert tools is not None
        text = self._clean(text, but=(tools.open, tools.split))
        if calls := parse_calls(text, tools, self._markers.offered):
            return [Segment("tools", text, tuple(calls))]
        return self._content(tools.open + text + (tools.close if closed else ""))

    def _content(self, text: str) -> list[Segment]:
        text = self._clean(text)
        self._started = self._started or bool(text.strip())
        return [Segment("content", text)] if text else []

    def _clean(self, text: str, *, but: Collection[str] = ()) -> str:
        return self._markers.special.taken_out(text, but=but)


def begins_thinking(template: ChatTemplate, prompt: Prompt) -> bool:
    """True if the generation prompt, or the prefill after it, opens thoughts and does not close them.

    Only what follows the conversation counts: a user who writes the opener must not turn the answer into thoughts.
    """
    channel = template.channel
    if channel is None:
        return False
    begin = max(0, prompt.start - len(template.header.ids) + 1)
    text = template.tokenizer.decode(list(prompt.ids[begin:]), skip_special_tokens=False)
    return text.rfind(channel.think_open) > text.rfind(channel.think_close)


def _is_json(text: str, markers: Collection[str]) -> bool:
    """Whether an answer that has to be JSON or a call begins as JSON: with no marker, nor the beginning of one."""
    return bool(text) and not any(text.startswith(marker) or marker.startswith(text) for marker in markers)
