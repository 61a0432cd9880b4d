"""Ask Anthropic's Messages API through the `anthropic` client."""

import contextlib
from collections.abc import Mapping
from itertools import takewhile
from typing import Any, Literal

from anydepth.apis.provider import ApiReply, ApiRequest, ChatTurn, Streamed, ended_by, no_tools
from anydepth.errors import PromptError
from anydepth.extras import require
from anydepth.prices import TokenCount
from anydepth.provider_errors import told_as_ours

_WORDS: Mapping[str, Literal["stop", "length", "refused"]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refused",
}
_INSTRUCTIONS = ("system", "developer")
_READ = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
_SAMPLING = ("temperature", "top_p", "top_k")  # the client has no argument for them from 2.0 on
_TEXTS = ("text", "thinking", "redacted_thinking")


class AnthropicClient:
    """Implements `Provider` over `anthropic.Anthropic` and its kin for cloud hosts.

    Args:
        client: The client; its retries, time limits and keys are its own.
        model: Name of the model.
    """

    name = "anthropic"
    options = frozenset({*_SAMPLING, "stop_sequences"})
    seed: str | None = None
    greedy = False
    tells_tokens = False

    def __init__(self, client: Any, model: str) -> None:
        self._sdk = require("anthropic", extra="apis", at_least=(2, 0))
        self._client, self._model = client, model
        self.host = str(client.base_url.host)
        self._who = f"{model} at {self.host}"

    def closes(self) -> bool:
        """False: older models continue such a message, newer ones reject it."""
        return False

    def require_turns(self, turns: tuple[ChatTurn, ...]) -> None:
        """PromptError unless all instructions stand before the first message: there is one field for them."""
        first = len(_instructions(turns))
        if late := [turn.role for turn in turns[first:] if turn.role in _INSTRUCTIONS]:
            raise PromptError(f"a {late[0]} message stands behind others; {self.name} takes instructions first only")
        if first == len(turns):
            raise PromptError("there are instructions only; add a user message")

    def stream(self, ask: ApiRequest) -> Streamed:
        """Stream the reply; see `Provider.stream`."""
        word, read, written = None, None, None
        with told_as_ours(self._who, self._sdk):
            events = self._create(ask, stream=True)
            with contextlib.closing(events), ask.handle.streaming(events.response):
                for event in events:
                    if event.type == "message_start":
                        read = _read(event.message.usage)
                    elif event.type == "content_block_start":
                        self._without_tools(event.content_block)
                    elif event.type == "content_block_delta" and event.delta.type == "text_delta" and event.delta.text:
                        yield event.delta.text
                    elif event.type == "message_delta":
                        word = event.delta.stop_reason or word
                        written = event.usage.output_tokens if event.usage else None
        if read is not None and written is not None:
            yield TokenCount(read, written)
        yield ended_by(_WORDS, word, self._who)

    def reply(self, ask: ApiRequest) -> ApiReply:
        """Ask for a whole reply; see `Provider.reply`."""
        with told_as_ours(self._who, self._sdk):
            found = self._create(ask)
        for block in found.content:
            self._without_tools(block)
        text = "".join(block.text for block in found.content if block.type == "text")
        usage = found.usage
        count = None if usage is None else TokenCount(_read(usage), usage.output_tokens or 0)
        return ApiReply(text, ended_by(_WORDS, found.stop_reason, self._who), count)

    def _create(self, ask: ApiRequest, **streaming: Any) -> Any:
        first = _instructions(ask.turns)
        system = {"system": "\n\n".join(turn.text for turn in first)} if first else {}
        messages = [{"role": turn.role, "content": turn.text} for turn in ask.turns[len(first) :]]
        fields: dict[str, Any] = {"model": self._model, "max_tokens": ask.max_tokens, **system, **ask.options}
        if sampling := {name: fields.pop(name) for name in _SAMPLING if name in fields}:
            fields["extra_body"] = {**(fields.get("extra_body") or {}), **sampling}
        fields |= streaming
        return self._client.messages.create(messages=messages, **fields)

    def _without_tools(self, block: Any) -> None:
        if block.type not in _TEXTS:
            raise no_tools(f"a block of type {block.type!r}", self._who)


def _instructions(turns: tuple[ChatTurn, ...]) -> tuple[ChatTurn, ...]:
    return tuple(takewhile(lambda turn: turn.role in _INSTRUCTIONS, turns))


def _read(usage: Any) -> int:
    """Prompt tokens, cached ones included: the API counts them apart."""
    return sum(getattr(usage, name, None) or 0 for name in _READ)
