"""Servers that OpenAI's client asks."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.server.openai_hosts import Host


@pytest.fixture(params=["transformers", "vllm", "proxy"])
def host(request: pytest.FixtureRequest) -> Iterator[Callable[..., Host]]:
    """Starts a server of one of the three kinds, with these tables of guard.toml."""
    hosts: list[Host] = []

    def start(**tables: Any) -> Host:
        hosts.append(Host(request.param, **tables))
        return hosts[-1]

    yield start
    for each in hosts:
        each.stop()


@pytest.fixture
def front() -> Host:
    """vLLM's front, before a vLLM whose answers a test sets."""
    return Host("vllm")
