"""What the client of a provider must do for the guard, and how its failures are told."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from anydepth.apis.answer_handle import AnswerHandle
from anydepth.apis.spending import TokenCount
from anydepth.errors import ConfigError, ProviderError


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
        handle: Ends the request from another thread.
    """

    turns: tuple[ChatTurn, ...]
    max_tokens: int
    ids: tuple[int, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
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


@dataclass(frozen=True, slots=True)
class ApiReply:
    """A whole reply: its text, how it ended, and what it used if the provider says so."""

    text: str
    ended: Ended
    count: TokenCount | None


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
    """

    name: str
    host: str
    options: frozenset[str]
    seed: str | None
    greedy: bool

    def stream(self, ask: ApiRequest) -> Streamed:
        """Ask for a stream. A stream that breaks off raises ProviderError; closing the iterator closes the stream."""
        ...

    def reply(self, ask: ApiRequest) -> ApiReply:
        """Ask for a whole reply; ProviderError if there is none, RequestRejected if the request is not accepted."""
        ...

    def require_turns(self, turns: tuple[ChatTurn, ...]) -> None:
        """PromptError if the provider cannot take such a conversation."""
        ...


class RequestRejected(ProviderError):
    """The provider answered with HTTP 400 or 422: it does not take a request of this form."""


class KeyRefused(ProviderError):
    """The provider answered with HTTP 401 or 403: it does not take the API key, or not for this model."""


class ProviderTimeout(ProviderError):
    """The provider was silent for longer than the client waits."""


class ProviderBusy(ProviderError):
    """The provider answered with HTTP 429, after the client's retries.

    Attributes:
        retry_after: Seconds after which to ask again, by the provider's word; None if it gave none.
    """

    def __init__(self, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@contextlib.contextmanager
def told_as_ours(who: str, sdk: Any) -> Iterator[None]:
    """Raise what the client `sdk` (a module) and its HTTP library raise as ProviderError, or a kind of it."""
    try:
        yield
    except (sdk.BadRequestError, sdk.UnprocessableEntityError) as error:
        raise RequestRejected(f"{who} does not accept the request: {error}") from error
    except (sdk.AuthenticationError, sdk.PermissionDeniedError) as error:  # its text may quote the key
        raise KeyRefused(
            f"{who} failed with HTTP {error.status_code}: it refuses the API key; give one that it takes for this model"
        ) from error
    except sdk.RateLimitError as error:
        wait = error.response.headers.get("retry-after", "")
        raise ProviderBusy(
            f"{who} failed with {type(error).__name__}: {error}", int(wait) if wait.isdecimal() else None
        ) from error
    except sdk.NotFoundError as error:
        raise ProviderError(
            f"{who} failed with {type(error).__name__}: {error}; look at the model's name and the address, which ends "
            "with /v1 in OpenAI's form as a rule"
        ) from error
    except (*_failures(sdk), json.JSONDecodeError) as error:
        kind = ProviderTimeout if isinstance(error, _timeouts(sdk)) else ProviderError
        raise kind(f"{who} failed with {type(error).__name__}: {error}") from error


def _libraries() -> list[Any]:
    """The HTTP libraries that a client may be built on."""
    return [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]


def _failures(sdk: Any) -> tuple[type[Exception], ...]:
    """The bases of the errors of a client and of its HTTP library."""
    base = getattr(sdk, "OpenAIError", None) or sdk.AnthropicError
    return base, *(library.HTTPError for library in _libraries())


def _timeouts(sdk: Any) -> tuple[type[Exception], ...]:
    return sdk.APITimeoutError, *(library.TimeoutException for library in _libraries())


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
