"""Texts in place of token ids: an API gives and takes texts, and the guard counts units."""

import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from anydepth.apis.provider import ChatTurn
from anydepth.errors import ConfigError, PromptError
from anydepth.templates.messages import normal, split_prefill
from anydepth.templates.prompt import Prompt

_WORD = re.compile(r"\s*\S+|\s+")
_KEYS = ("role", "content")
_ROLES = ("system", "developer", "user", "assistant")
PLAIN = "plain text"
"""Stands for the role where a prompt is a text without a conversation."""


class Piece(int):
    """One unit of an answer, or one message of a prompt, that stands where a token id does.

    As a number it is a checksum of its text: equal texts are equal numbers, and nothing else is meant by it.

    Attributes:
        text: The text.
        role: Role of the message; None for a unit of an answer.
    """

    text: str
    role: str | None

    def __new__(cls, text: str, role: str | None = None) -> "Piece":
        """A piece with this text, of a message if `role` is given."""
        piece = super().__new__(cls, zlib.crc32(text.encode("utf-8", "surrogatepass")))
        piece.text, piece.role = text, role
        return piece


def text_of(pieces: Iterable[int]) -> str:
    """The text of pieces of an answer; ConfigError if one is a bare number, whose text nobody knows."""
    texts: list[str] = []
    for piece in pieces:
        if not isinstance(piece, Piece):
            raise ConfigError(f"{piece!r} is a bare number; over an API, units are those that the backend gave")
        texts.append(piece.text)
    return "".join(texts)


def words_of(text: str) -> tuple[Piece, ...]:
    """A text that nobody streamed as units: words, each with the space before it."""
    return tuple(Piece(word) for word in _WORD.findall(text))


def turns_of(prompt: Prompt) -> tuple[ChatTurn, ...]:
    """The messages of a prompt of `ConversationTemplate`; ConfigError if it is one of token ids."""
    pieces = prompt.ids[: prompt.start]
    if not all(isinstance(piece, Piece) and piece.role is not None for piece in pieces):
        raise ConfigError("the prompt has token ids; over an API, make prompts with the backend's own template")
    return tuple(ChatTurn(piece.role or "", piece.text) for piece in pieces if isinstance(piece, Piece))


class ConversationTemplate:
    """Makes prompts of messages, one piece each, in place of a chat template, which an API keeps for itself."""

    name = "the API's own template"

    def plain(self, text: str) -> Prompt:
        """The prompt that is `text` as it is, for capability `raw`; PromptError if it is blank."""
        if not text.strip():
            raise PromptError("the text to go on with is empty; give a text")
        return Prompt((Piece(text, PLAIN),))

    def prompt(
        self, messages: str | Sequence[Any], *, tools: Sequence[Any] | None = None, prefill: str | None = None
    ) -> Prompt:
        """The prompt for `messages`; its prefill, if there is one, is cut into words.

        Args:
            messages: The conversation, or the text of one user message. A last message of the assistant is a prefill.
            tools: Must be empty.
            prefill: How the assistant's answer begins.

        Raises:
            PromptError: There are tools or tool calls, something else than text, an unknown role, or no message.
        """
        if tools:
            raise PromptError("tools cannot be guarded over an API: a call is no text to look ahead from; give none")
        plain = normal(messages)
        for index, message in enumerate(plain):
            _require_text(index, message)
        history, opening = split_prefill(plain, prefill)
        pieces = tuple(Piece(message["content"], message["role"]) for message in history)
        units = words_of(opening)
        return Prompt(pieces + units, prefill=len(units))

    def call_prompt(self, messages: Any, tool_call: Any, **_: Any) -> Any:
        """Refuse to write a proposed tool call, PromptError: an API's look-ahead does not judge calls."""
        raise PromptError(
            "a tool call cannot be gated over an API: a call is no text to look ahead from; gate it with a model that "
            "is loaded here, e.g. through `anydepth serve`"
        )


def _require_text(index: int, message: dict[str, Any]) -> None:
    """PromptError unless the message is a text of a role that has one."""
    if message["role"] not in _ROLES:
        raise PromptError(
            f"message {index} has the role {message['role']!r}; over an API these are guarded: {', '.join(_ROLES)}"
        )
    if more := [key for key, value in message.items() if key not in _KEYS and value]:
        raise PromptError(f"message {index} has {', '.join(more)}; over an API only role and content are guarded")
    if not isinstance(message.get("content"), str):
        raise PromptError(f"message {index} has no text; give it one")
