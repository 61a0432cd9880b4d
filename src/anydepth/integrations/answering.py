"""The answers of a guard as text, thoughts and tool calls, for programs that ask from several threads."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator, Sequence
from functools import partial
from typing import Any

from anydepth.errors import ConfigError
from anydepth.guard import Guard
from anydepth.server.answer.compose import Composer, Delta, End, Reading, has_calls
from anydepth.server.answer.segments import Markers, SpecialTokens, begins_thinking
from anydepth.templates.call_formats import ToolFormat, choose_format
from anydepth.types import Message

Pieces = Generator[Delta | End, None, None]


class Answering:
    """Asks one guard; its model is used by one answer at a time, window by window.

    Args:
        guard: The guard.
        tool_format: How the model writes calls: a row of `data/toolcalls.toml`, `auto` or `none`.

    Raises:
        ConfigError: There is no such format.
    """

    def __init__(self, guard: Guard, tool_format: str = "auto") -> None:
        self.guard, self._turn = guard, threading.Lock()
        tokenizer = guard.template.tokenizer
        self._asked = tool_format
        self._calls = choose_format(tool_format, str(getattr(tokenizer, "chat_template", None) or ""))
        self._special = SpecialTokens.of(tokenizer)

    @property
    def calls(self) -> ToolFormat:
        """How the model writes calls; ConfigError if that is not known."""
        if self._calls is None:
            raise ConfigError(f"tool_format is {self._asked!r}, which gives no format of calls; name one")
        return self._calls

    def pieces(
        self, messages: Sequence[Message], *, tools: Sequence[Any] = (), stops: Sequence[str] = (), **options: Any
    ) -> Pieces:
        """Answer one conversation; yields `Delta` as often as text, thoughts or calls leave, and `End` last.

        Args:
            messages: The conversation; a last message of the assistant is a prefill.
            tools: Tools that are offered, as OpenAI describes them.
            stops: Texts that end the answer; they are no part of it.
            **options: The other arguments of `Guard.stream`, whose errors these are.
        """
        reading = self._reading(messages, tools, tuple(stops))
        composer = Composer(reading)
        options["has_calls"] = partial(has_calls, reading)  # one with a failed check and calls is halted at its end
        if stops:
            options["stop_strings"] = list(stops)
        events: Any = self.guard.stream(messages, tools=list(tools) or None, **options)
        try:
            while True:
                with self._turn:
                    event = next(events, None)
                if event is None:
                    return
                yield from filter(_says_something, composer.write(event))
        finally:
            events.close()

    def _reading(self, messages: Sequence[Message], tools: Sequence[Any], stops: tuple[str, ...]) -> Reading:
        template = self.guard.template
        prompt = template.prompt(messages, tools=list(tools) or None)
        markers = Markers(
            channel=template.channel,
            tools=self.calls if tools else None,
            offered=frozenset(tool["function"]["name"] for tool in tools),
            special=self._special,
            thinking=begins_thinking(template, prompt),
        )

        def decode(ids: Any) -> str:
            return template.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

        looks = decode if markers.needed else None
        return Reading(self.guard.config.refusal, stops, markers, decode=looks, prefix=prompt.ids[prompt.start :])


async def apieces(pieces: Pieces) -> AsyncGenerator[Delta | End, None]:
    """The pieces for asyncio: the model runs in a thread, and an answer that is left ends after its step."""
    step = threading.Lock()

    def act(what: Any, *given: Any) -> Any:
        with step:  # a step whose await was cancelled goes on in its thread
            return what(*given)

    try:
        while (piece := await asyncio.to_thread(act, next, pieces, None)) is not None:
            yield piece
    finally:
        await asyncio.shield(asyncio.to_thread(act, pieces.close))


def _says_something(piece: Delta | End) -> bool:
    return isinstance(piece, End) or bool(piece.content or piece.reasoning or piece.calls)
