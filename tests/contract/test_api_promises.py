"""The guarantees of the README on an answer that comes over an API.

Those about a prefill are left out: a look-ahead is not made inside of a prefill, and most APIs continue none.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest

from anydepth import Guard, Rethink
from anydepth.apis import ApiBackend
from anydepth.types import Score
from tests.contract.hosts import Library, settings_of
from tests.contract.promises import (
    test_a_failed_check_halts,
    test_a_failed_check_is_counted_where_the_operator_lets_it_go_on,
    test_an_unhalted_answer_is_the_bare_models,
    test_every_token_is_accounted_for,
    test_no_token_leaves_before_a_check_that_covers_it,
    test_the_last_window_is_checked_however_short,
    test_under_eager_tokens_leave_first_and_a_halt_ends_them,
    test_under_monitor_nothing_halts,
)
from tests.unit.apis.fake_api import NO, YES, FakeApi, Script

__all__ = [
    "test_a_failed_check_halts",
    "test_a_failed_check_is_counted_where_the_operator_lets_it_go_on",
    "test_an_unhalted_answer_is_the_bare_models",
    "test_every_token_is_accounted_for",
    "test_no_token_leaves_before_a_check_that_covers_it",
    "test_the_last_window_is_checked_however_short",
    "test_under_eager_tokens_leave_first_and_a_halt_ends_them",
    "test_under_monitor_nothing_halts",
]

LATE = 10  # pieces of an answer from which on the model refuses in a fresh turn


class Half(Rethink):
    """Scores a refusal 0.5: the promises try thresholds above and below the scores of one answer."""

    def judge_text(self, text: str) -> Score:
        return Score(super().judge_text(text).value / 2)


class Api(Library):
    """`Guard` over a server that writes as many pieces as it may."""

    def __init__(self, script: Script, url: str) -> None:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        self._probe, self._script = Path("none"), script
        self._guard = Guard.from_backend(ApiBackend(client, "m"), Half())

    def answer(
        self, request: str, *, prefill: str | None = None, tokens: int = 20, guard: Mapping[str, Any] | None = None
    ) -> Any:
        options = settings_of(self._probe, Path("unused"), guard).guard.guard_options()
        self._script.answer = pieces(tokens)
        return self._seen(self._guard.with_options(**options).stream(request, max_new_tokens=tokens))

    def bare(self, request: str, *, prefill: str | None = None, tokens: int = 20) -> str:
        self._script.answer = pieces(tokens)
        return self._guard.unguarded(request, max_new_tokens=tokens)

    @contextlib.contextmanager
    def failing_checks(self) -> Iterator[None]:
        def failing(body: dict[str, Any]) -> bool:
            return not body.get("stream") and body["messages"][-1]["role"] == "assistant"

        self._script.failing = failing
        yield
        self._script.failing = lambda body: False


def pieces(tokens: int) -> tuple[str, ...]:
    return tuple(f"w{number} " for number in range(tokens))


@pytest.fixture(scope="module")
def host() -> Iterator[Api]:
    script = Script(look_ahead=lambda partial: NO if len(partial.split()) >= LATE else YES)
    server = FakeApi(script)
    yield Api(script, server.url)
    server.close()
