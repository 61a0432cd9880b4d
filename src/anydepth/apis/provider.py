"""What the client of a provider must do for the guard."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from anydepth.apis.answer_handle import AnswerHandle
from anydepth.errors import CheckError, ConfigError, ProviderError
from anydepth.prices import TokenCount


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One message as every provider has it: a role and a text."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """One request.

    Attributes:
        turns: The conversation; empty where `ids` are given.
        max_tokens: The provider's tokens to write at most.
        ids: A rendered prompt as token ids, for a completions endpoint; None asks the chat endpoint.
        options: Further fields of the request.
        top_logprobs: For how many of the most probable tokens, at each place, the log-probabilities are asked for; 0
            asks for none. Only where `Provider.tells_tokens`.
        handle: Ends the request from another thread.
    """

    turns: tuple[ChatTurn, ...]
    max_tokens: int
    ids: tuple[int, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    top_logprobs: int = 0
    handle: AnswerHandle = field(default_factory=AnswerHandle)


@dataclass(frozen=True, slots=True)
class Ended:
    """How the provider says that a text ended.

    Attributes:
        reason: `stop`, `length` (its limit) or `refused` (the provider's own filter or refusal).
        word: What the provider calls it.
    """

    reason: Literal["stop", "length", "refused"]
    word: str


TokenTexts = Mapping[str, float]
"""The most probable tokens at one place: text -> log-probability."""


@dataclass(frozen=True, slots=True)
class ApiReply:
    """A whole reply.

    Attributes:
        text: Its text.
        ended: How it ended.
        count: What it used, if the provider says so.
        tokens: The most probable tokens at each of its places, if they were asked for and are told; else None.
    """

    text: str
    ended: Ended
    count: TokenCount | None
    tokens: tuple[TokenTexts, ...] | None = None

    def require_words(self, max_tokens: int) -> None:
        """CheckError if all of `max_tokens` were spent, and none of them on the text."""
        if self.ended.reason == "length" and not self.text.strip():
            raise CheckError(
                f"a look-ahead of {max_tokens} tokens has no text: the model spent them on thoughts; switch these off "
                "with request=, or give Rethink more max_new_tokens"
            )


Streamed = Iterator[str | TokenCount | Ended]
"""Pieces of text, none empty; then what was used, if it is told; `Ended` is always the last."""


class Provider(Protocol):
    """Asks one provider through its official client.

    Attributes:
        name: Name of the provider's protocol, `openai` or `anthropic`.
        host: Host name of the endpoint.
        options: The sampling options of an answer that are passed on.
        seed: Name of the option for a seed; None if the provider takes none.
        greedy: Whether its models take a temperature of 0 as a rule.
        tells_tokens: Whether its form has log-probabilities of tokens.
    """

    name: str
    host: str
    options: frozenset[str]
    seed: str | None
    greedy: bool
    tells_tokens: bool

    def stream(self, ask: ApiRequest) -> Streamed:
        """Ask for a stream. A stream that breaks off raises ProviderError; closing the iterator closes the stream."""
        ...

    def reply(self, ask: ApiRequest) -> ApiReply:
        """Ask for a whole reply; ProviderError if there is none, RequestRejected if the request is not accepted."""
        ...

    def closes(self) -> bool:
        """Whether the endpoint says that it is an engine whose default is known: it closes a last assistant message."""
        ...

    def require_turns(self, turns: tuple[ChatTurn, ...]) -> None:
        """PromptError if the provider cannot take such a conversation."""
        ...


def ended_by(words: Mapping[str, Literal["stop", "length", "refused"]], word: str | None, who: str) -> Ended:
    """How a text ended by the provider's word for it; ProviderError if there is none, or one that cannot be guarded."""
    if word is None:
        raise ProviderError(f"{who} broke off before the end of its text: it gave no reason for an end; ask again")
    if word not in words:
        raise ProviderError(
            f"{who} ended its text with {word!r}, which cannot be guarded; what can is {', '.join(words)}"
        )
    return Ended(words[word], word)


def no_tools(kind: str, who: str) -> ProviderError:
    """The error for a tool call in an answer: a call is no text that a look-ahead could judge."""
    return ProviderError(
        f"{who} answers with {kind}; tool calls cannot be guarded over an API: switch the tools off there"
    )


def require_free(fields: Mapping[str, Any]) -> None:
    """ConfigError if the fields for every request name one that the guard sets itself, or one that brings tools."""
    own = {
        *("model", "messages", "prompt", "system", "stream", "stream_options", "n", "max_tokens"),
        *("max_completion_tokens", "tools", "tool_choice", "functions", "function_call", "mcp_servers"),
    }
    body = fields.get("extra_body") or {}
    if taken := sorted(own & ({*fields} | {*body})):
        raise ConfigError(f"request has {', '.join(taken)}, which the guard sets itself or cannot guard; leave it out")
