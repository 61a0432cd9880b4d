"""Works take turns in one thread."""

import asyncio
import threading
import time

import pytest

from anydepth import Guard
from anydepth.server.engine.engine import AnswerTimeout, Busy, EngineError, Job, ShuttingDown
from anydepth.server.engine.taking_turns import Worker
from anydepth.server.engine.transformers_engine import TransformersEngine
from anydepth.templates.template import Prompt
from anydepth.testing import END, ScriptedBackend, ScriptedDetector
from anydepth.types import Checked, Finished, Halted, Released


class Steps:
    def __init__(self, name: str, count: int, log: list[str], gate: threading.Event | None = None) -> None:
        self.name, self.left, self.log, self.gate = name, count, log, gate
        self.cancelled, self.ended = False, threading.Event()
        self.error: Exception | None = None

    def turn(self) -> bool:
        if self.gate:
            self.gate.wait(5)
        self.log.append(self.name)
        self.left -= 1
        return self.left > 0

    def end(self, error: Exception | None = None) -> None:
        self.error = error
        self.ended.set()


def run(worker: Worker, *works: Steps) -> None:
    for work in works:
        assert worker.put(work)
    worker.start()
    for work in works:
        assert work.ended.wait(5)
    worker.stop(RuntimeError("over"))
    worker.join(5)
    assert not worker.alive


def test_turns_are_fair_and_the_rest_waits_in_order():
    log: list[str] = []
    run(Worker(2, 9), Steps("a", 3, log), Steps("b", 3, log), Steps("c", 2, log), Steps("d", 1, log))
    assert log == ["a", "b", "a", "b", "a", "b", "c", "d", "c"]


def test_there_is_room_for_so_many():
    worker = Worker(1, 1)
    log: list[str] = []
    first, second = Steps("a", 1, log), Steps("b", 1, log)
    assert worker.put(first) and worker.put(second) and not worker.put(Steps("c", 1, log))
    second.cancelled = True
    assert worker.put(third := Steps("d", 1, log)), "a cancelled work keeps no place"
    worker.start()
    assert third.ended.wait(5) and second.ended.wait(5)
    assert log == ["a", "d"]
    worker.stop(RuntimeError("over"))
    worker.join(5)
    assert not worker.put(Steps("e", 1, log))


def test_a_cancelled_work_ends_at_its_next_turn():
    log: list[str] = []
    gate = threading.Event()
    worker, work = Worker(1, 1), Steps("a", 1000, log, gate)
    worker.put(work)
    worker.start()
    work.cancelled = True
    gate.set()
    assert work.ended.wait(5) and len(log) <= 1
    worker.stop(RuntimeError("over"))


def test_abort_tells_everybody():
    log: list[str] = []
    gate = threading.Event()
    worker = Worker(1, 5)
    works = [Steps("a", 1000, log, gate), Steps("b", 1, log)]
    for work in works:
        worker.put(work)
    worker.start()
    worker.abort(error := ShuttingDown("over"))
    gate.set()
    for work in works:
        assert work.ended.wait(5) and work.error is error
    again = Steps("c", 1, log)
    assert worker.put(again) and again.ended.wait(5) and again.error is None


# -- the engine over it ------------------------------------------------------------------------------------------------


def engine_of(backend: ScriptedBackend, scores=None, **options) -> TransformersEngine:
    guard = Guard.from_backend(backend, ScriptedDetector(scores or {0: 0.1}))
    return TransformersEngine(guard, model="m", end_token_ids=frozenset({END}), **options)


def job_of(engine: TransformersEngine, length: int = 100) -> Job:
    return Job(Prompt((257, 104, 256, 258)), engine.facts.guard, length)


async def collect(engine: TransformersEngine) -> list:
    return [event async for event in engine.submit(job_of(engine))]


async def test_events_are_those_of_the_guard():
    engine = engine_of(ScriptedBackend(["hello"]))
    seconds: list[float] = []
    engine.on_check = seconds.append
    await engine.start()
    events = await collect(engine)
    assert "".join(e.text for e in events if isinstance(e, Released)) == "hello"
    assert isinstance(events[-1], Finished) and len(seconds) == sum(isinstance(e, Checked) for e in events)
    assert engine._guard.backend.sessions[-1].closed
    await engine.stop()
    with pytest.raises(ShuttingDown):
        await collect(engine)


async def test_a_halt():
    engine = engine_of(ScriptedBackend(["hello there"]), {0: 0.1, 4: 0.9})
    await engine.start()
    events = await collect(engine)
    assert [type(e) for e in events[-2:]] == [Halted, Finished]
    scan = await engine.scan(Prompt((257, 104, 256, 258)), engine.facts.guard)
    assert not scan.verdict.halt and [c.depth for c in scan.checks] == [0]
    scan = await engine.scan(Prompt((257, 104, 256, 258, *b"hello"), prefill=5), engine.facts.guard)
    assert scan.verdict.halt and scan.verdict.depth == 4
    await engine.stop()


async def test_depth_0_of_a_scan_halts():
    engine = engine_of(ScriptedBackend(["x"]), {0: 0.9})
    await engine.start()
    scan = await engine.scan(Prompt((257, 104, 256, 258)), engine.facts.guard)
    assert scan.verdict.halt and scan.verdict.reason == "policy"
    await engine.stop()


async def test_closing_the_iterator_closes_the_session():
    backend = ScriptedBackend(["x" * 100_000])
    engine = engine_of(backend)
    await engine.start()
    events = engine.submit(job_of(engine, 100_000))
    await anext(events)
    await events.aclose()
    end = time.monotonic() + 5
    while not backend.sessions[-1].closed:
        assert time.monotonic() < end
        await asyncio.sleep(0.005)
    assert engine.stats.live == 0
    await engine.stop()


class Slow(ScriptedBackend):
    def open(self, *arguments, **options):
        time.sleep(0.2)
        return super().open(*arguments, **options)


async def test_a_timeout():
    engine = engine_of(Slow(["hello"]), timeout=0.05)
    await engine.start()
    with pytest.raises(AnswerTimeout):
        await collect(engine)
    await engine.stop()


async def test_a_full_queue():
    engine = engine_of(Slow(["hello"]), live=1, queue=0)
    await engine.start()
    first = asyncio.create_task(collect(engine))
    await asyncio.sleep(0.05)
    with pytest.raises(Busy) as caught:
        await collect(engine)
    assert 1 <= caught.value.retry_after <= 60
    assert isinstance((await first)[-1], Finished)
    await engine.stop()


async def test_an_error_of_the_model_is_wrapped():
    class Broken(ScriptedBackend):
        def open(self, *arguments, **options):
            raise MemoryError("all gone")

    engine = engine_of(Broken(["x"]))
    await engine.start()
    with pytest.raises(EngineError, match="MemoryError") as caught:
        await collect(engine)
    assert isinstance(caught.value.__cause__, MemoryError)
    await engine.stop()
