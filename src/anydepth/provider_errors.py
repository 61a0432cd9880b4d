"""Tell the failures of a model behind an API in our own words, whatever client it is asked with."""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from anydepth.errors import ProviderError


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
