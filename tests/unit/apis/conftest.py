"""A server of each form, and guards over it."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import anthropic
import openai
import pytest

from anydepth import Guard, Rethink
from anydepth.apis import ApiBackend
from anydepth.schedule import Every
from tests.unit.apis.fake_api import FakeApi, Script

Serve = Callable[[Script], str]
MakeGuard = Callable[..., Guard]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server over a script and gives its address."""
    servers: list[FakeApi] = []

    def start(script: Script) -> str:
        servers.append(FakeApi(script))
        return servers[-1].url

    yield start
    for server in servers:
        server.close()


@cache
def _client(kind: str) -> Any:
    """One client of each kind: to load the certificates takes most of a test's time."""
    return anthropic.Anthropic(api_key="none") if kind == "anthropic" else openai.OpenAI(api_key="none")


def client_of(kind: str, url: str, retries: int = 0) -> Any:
    """A client for the server at `url`."""
    address = url if kind == "anthropic" else f"{url}/v1"
    return _client(kind).with_options(base_url=address, max_retries=retries)


@pytest.fixture
def make_backend(serve: Serve) -> Callable[..., ApiBackend]:
    """An `ApiBackend` over a script, by the kind of the client."""

    def make(script: Script, kind: str = "openai", *, retries: int = 0, **options: Any) -> ApiBackend:
        return ApiBackend(client_of(kind, serve(script), retries), "m", **options)

    return make


@pytest.fixture
def make_guard(make_backend: Callable[..., ApiBackend]) -> MakeGuard:
    """A guard over a script; checks after 2 pieces each unless `schedule` says otherwise."""

    def make(script: Script, kind: str = "openai", *, guard: dict[str, Any] | None = None, **options: Any) -> Guard:
        own = {"schedule": Every(2, doubling=False), "refusal": "No, thanks.", **(guard or {})}
        return Guard.from_backend(make_backend(script, kind, **options), Rethink(), **own)

    return make
