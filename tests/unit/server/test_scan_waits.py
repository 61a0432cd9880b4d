"""A scan, and a check inside a prefill, that ask an external guard leave the model to others until it has replied."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from anydepth import Guard
from anydepth.backends.protocol import Capability
from anydepth.detectors import Cascade, ExternalGuard, Rethink
from anydepth.schedule import Adaptive, Every, Schedule
from anydepth.server.engine.engine import Job
from anydepth.server.engine.transformers_engine import TransformersEngine
from anydepth.testing import END, ScriptedBackend, ScriptedDetector
from anydepth.types import Finished
from tests.fake_guard import FakeGuard

NO = "I'm sorry, but I can't help with that."
UNSURE = "x" * 20
"""An answer that is longer than any other here: the script is unsure of its end."""

SCORES = {0: 0.1, len(UNSURE): 0.5, len(UNSURE) + 1: 0.1}


@pytest.fixture
def endpoint() -> Iterator[FakeGuard]:
    found = FakeGuard()
    yield found
    found.close()


def guard_of(endpoint: FakeGuard, scores: dict[int, float], **options: Any) -> Guard:
    """A guard whose endpoint is asked where the scripted score is 0.5."""
    external = ExternalGuard(endpoint.url, "g", retries=0, timeout=30)
    first = ScriptedDetector(scores, needs=frozenset({Capability.HIDDEN_STATES}))  # asked inside a prefill as well
    cascade = Cascade(first, external, 0.2, 0.8)
    return Guard.from_backend(ScriptedBackend(["hello there"]), cascade, **options)


def engine_of(guard: Guard, **options: Any) -> TransformersEngine:
    return TransformersEngine(guard, model="m", end_token_ids=frozenset({END}), **options)


async def answer(engine: TransformersEngine, prefill: str | None = None) -> list[Any]:
    job = Job(engine.facts.template.prompt("hi", prefill=prefill), engine.facts.guard, 8)
    return [event async for event in engine.submit(job)]


async def scan(engine: TransformersEngine, text: str | None) -> Any:
    return await engine.scan(engine.facts.template.prompt("hi", prefill=text), engine.facts.guard)


@pytest.mark.parametrize("schedule", [Every(5, doubling=False), Adaptive()])
async def test_another_request_is_finished_while_a_scan_waits(endpoint: FakeGuard, schedule: Schedule) -> None:
    engine = engine_of(guard_of(endpoint, SCORES, schedule=schedule))
    endpoint.verdict = lambda text: "unsafe"
    asked, replies = endpoint.held()
    waits = asyncio.create_task(scan(engine, UNSURE))
    assert await asyncio.to_thread(asked.wait, 30)
    assert isinstance((await answer(engine))[-1], Finished) and not waits.done()
    assert not (await scan(engine, "short")).verdict.halt and not waits.done()
    replies.set()
    found = await waits
    assert (found.verdict.halt, found.verdict.depth, found.method) == (True, len(UNSURE), "forks")
    assert [len(check.stages) for check in found.checks] == [1] * (len(found.checks) - 1) + [2]
    await engine.stop()


async def test_another_request_is_finished_while_a_request_without_an_answer_waits(endpoint: FakeGuard) -> None:
    """Depth 0 alone is checked, and scored before the other request comes."""
    scores = {0: 0.5}
    engine = engine_of(guard_of(endpoint, scores))
    asked, replies = endpoint.held()
    waits = asyncio.create_task(scan(engine, None))
    assert await asyncio.to_thread(asked.wait, 30)
    scores[0] = 0.1
    assert isinstance((await answer(engine))[-1], Finished) and not waits.done()
    replies.set()
    found = await waits
    assert not found.verdict.halt and [check.depth for check in found.checks] == [0]
    await engine.stop()


async def test_another_request_is_finished_while_a_check_inside_a_prefill_waits(endpoint: FakeGuard) -> None:
    scores = {0: 0.1, 10: 0.5, 15: 0.1}
    engine = engine_of(guard_of(endpoint, scores, schedule=Every(5, doubling=False)))
    endpoint.verdict = lambda text: "unsafe"
    asked, replies = endpoint.held()
    waits = asyncio.create_task(answer(engine, UNSURE))
    assert await asyncio.to_thread(asked.wait, 30)
    assert isinstance((await answer(engine))[-1], Finished) and not waits.done()
    replies.set()
    found = (await waits)[-1].answer
    assert found.halted and found.verdict.depth == 10 and len(found.checks[-1].stages) == 2
    await engine.stop()


@pytest.mark.parametrize("schedule", [Every(5, doubling=False), Adaptive()])
async def test_a_scan_that_is_given_up_while_it_waits_gives_its_place_back(
    endpoint: FakeGuard, schedule: Schedule
) -> None:
    guard = guard_of(endpoint, SCORES, schedule=schedule)
    engine = engine_of(guard, live=1)
    asked, replies = endpoint.held()
    waits = asyncio.create_task(scan(engine, UNSURE))
    assert await asyncio.to_thread(asked.wait, 30)
    waits.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waits
    assert isinstance((await answer(engine))[-1], Finished), "the one place is free"
    sessions: Any = guard.backend
    assert all(session.closed for session in sessions.sessions)
    replies.set()
    await engine.stop()


def test_the_next_answer_is_read_while_the_verdict_on_one_is_awaited(endpoint: FakeGuard) -> None:
    guard = guard_of(endpoint, SCORES, schedule=Every(5, doubling=False))
    both = threading.Barrier(2, timeout=30)
    endpoint.before = both.wait
    endpoint.verdict = lambda text: "unsafe" if "yyyy" in text else "safe"
    found = guard.scan_many([("one", UNSURE), ("two", "y" * 20)])
    assert [each.verdict.halt for each in found] == [False, True]


@pytest.mark.parametrize("schedule", [Every(5, doubling=False), Adaptive()])
def test_each_scan_of_several_has_its_own_result(endpoint: FakeGuard, schedule: Schedule) -> None:
    guard = guard_of(endpoint, SCORES, schedule=schedule)
    endpoint.verdict = lambda text: "unsafe" if "yyyy" in text else "safe"
    conversations = [("one", UNSURE), ("two", "short"), ("three", "y" * 20), ("four", UNSURE)]
    found = guard.scan_many(conversations)
    assert [each.verdict.halt for each in found] == [False, False, True, False]
    assert found == [guard.scan(*each) for each in conversations]


@pytest.mark.parametrize("of", ["a scan", "a scan that asks outside", "a prefill"])
async def test_an_answer_takes_turns_with_checks_of_many_depths(endpoint: FakeGuard, of: str) -> None:
    """The look-ahead of the first depth ends only once the answer is under way as well."""
    seen: list[int] = []
    begun, goes = threading.Event(), threading.Event()

    def look_ahead(row: int, depth: int) -> str:
        seen.append(depth)
        if len(seen) == 1:
            begun.set()
            assert goes.wait(30)
        return NO

    backend = ScriptedBackend(["ab"], look_aheads=look_ahead)
    unsure = ScriptedDetector({0: 0.5}, needs=frozenset({Capability.HIDDEN_STATES}))
    detector: Any = {
        "a scan": Rethink(),
        "a scan that asks outside": Cascade(Rethink(), ExternalGuard(endpoint.url, "g", retries=0), 0.0, 0.5),
        "a prefill": Cascade(unsure, Rethink(), 0.2, 0.8),
    }[of]
    engine = engine_of(Guard.from_backend(backend, detector, schedule=Every(1, doubling=False), release="monitor"))
    long = asyncio.create_task(answer(engine, UNSURE) if of == "a prefill" else scan(engine, UNSURE))
    assert await asyncio.to_thread(begun.wait, 30)
    answers = asyncio.create_task(answer(engine))
    while engine.stats.live < 2:
        await asyncio.sleep(0.001)
    goes.set()
    assert isinstance((await answers)[-1], Finished)
    await long
    last = len(UNSURE) - 1
    assert seen.index(last) > last + 1, "the look-aheads of the short answer come before the last of the others"
    await engine.stop()
