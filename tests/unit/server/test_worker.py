"""Works take turns in one thread."""

import asyncio
import contextlib
import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest

from anydepth import Guard
from anydepth.detectors import Cascade
from anydepth.server.engine import taking_turns
from anydepth.server.engine.engine import AnswerTimeout, Busy, EngineError, Job, ShuttingDown
from anydepth.server.engine.taking_turns import Turns
from anydepth.server.engine.transformers_engine import TransformersEngine
from anydepth.templates.template import Prompt
from anydepth.testing import END, ScriptedBackend, ScriptedDetector
from anydepth.types import Checked, Finished, Halted, Released, Score


class Steps:
    def __init__(self, name: str, count: int, log: list[str], gate: threading.Event | None = None) -> None:
        self.name, self.left, self.log, self.gate = name, count, log, gate
        self.cancelled, self.ended, self.begun = False, threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.waits_for: Future[Any] | None = None
        self.interrupted = False

    def turn(self) -> bool:
        self.begun.set()
        if self.gate:
            assert self.gate.wait(30)
        self.log.append(self.name)
        self.left -= 1
        if self.left < 0:
            raise AssertionError("a turn after the last one")
        return self.left > 0

    def end(self) -> None:
        self.ended.set()

    def interrupt(self) -> None:
        self.interrupted = True


class Failing(Steps):
    def turn(self) -> bool:
        super().turn()
        raise RuntimeError("a fault of ours")

    def end(self) -> None:
        super().end()
        raise RuntimeError("another one")


def ended(*works: Steps) -> None:
    for work in works:
        assert work.ended.wait(30)


def gated(turns: Turns, log: list[str]) -> tuple[Steps, threading.Event]:
    """A work in the middle of its first turn, and what lets it go on."""
    gate = threading.Event()
    first = Steps("first", 1000, log, gate)
    assert turns.put(first) and first.begun.wait(30)
    return first, gate


def test_turns_are_fair_and_the_rest_waits_in_order():
    log: list[str] = []
    turns = Turns(3, 9)
    blocker, gate = gated(turns, log)
    blocker.left = 1
    works = [Steps("a", 3, log), Steps("b", 3, log), Steps("c", 2, log), Steps("d", 1, log)]
    assert all(map(turns.put, works))
    assert (turns.live, turns.waiting) == (3, 2)
    gate.set()
    ended(*works)
    # "c" takes the place of the blocker, "d" that of "a", the first to end
    assert log == ["first", "a", "b", "c", "a", "b", "c", "a", "b", "d"]
    turns.stop(RuntimeError("over"))
    assert (turns.live, turns.waiting) == (0, 0)


def test_with_a_thread_for_each_none_waits_for_another():
    log: list[str] = []
    turns = Turns(2, 2, threads=2)
    blocker, gate = gated(turns, log)
    blocker.left = 1
    works = [Steps("a", 3, log), Steps("b", 1, log)]
    assert all(map(turns.put, works))
    ended(*works)
    assert log == ["a", "a", "a", "b"] and not blocker.ended.is_set()
    gate.set()
    ended(blocker)
    turns.stop(RuntimeError("over"))
    assert (turns.live, turns.waiting) == (0, 0)


class Elsewhere(Steps):
    """Waits for something elsewhere after each of its turns but the last."""

    def turn(self) -> bool:
        more = super().turn()
        self.waits_for = Future() if more else None
        return more


def test_a_work_that_waits_elsewhere_holds_no_thread():
    log: list[str] = []
    turns = Turns(2, 0)
    patient, other = Elsewhere("patient", 3, log), Steps("other", 2, log)
    assert turns.put(patient) and patient.begun.wait(30)
    assert turns.put(other)
    ended(other)
    assert log == ["patient", "other", "other"] and turns.live == 1
    for _ in range(2):
        waits_for = patient.waits_for
        assert waits_for is not None
        waits_for.set_result(None)
        while patient.waits_for is waits_for:
            time.sleep(0.001)
    ended(patient)
    assert log.count("patient") == 3
    turns.stop(RuntimeError("over"))
    assert (turns.live, turns.waiting) == (0, 0)


def test_a_work_that_waits_elsewhere_ends_at_once_and_once():
    turns, error = Turns(2, 0), ShuttingDown("over")
    patient = Elsewhere("patient", 3, [])
    assert turns.put(patient) and patient.begun.wait(30)
    while patient.waits_for is None:
        time.sleep(0.001)
    turns.stop(error)
    ended(patient)
    assert patient.error is error and len(patient.log) == 1
    patient.waits_for.set_result(None)  # too late: nothing goes on
    assert turns.live == 0 and len(patient.log) == 1


def test_there_is_room_for_so_many():
    log: list[str] = []
    turns = Turns(1, 1)
    first, gate = gated(turns, log)
    first.left = 1
    second = Steps("b", 1, log)
    assert turns.put(second) and not turns.put(Steps("c", 1, log))
    second.cancelled = True
    assert turns.waiting == 0
    third = Steps("d", 1, log)
    assert turns.put(third), "a cancelled work keeps no place"
    gate.set()
    ended(first, third)
    assert log == ["first", "d"]
    turns.stop(RuntimeError("over"))
    assert turns.over and not turns.put(Steps("e", 1, log))


def test_a_cancelled_work_ends_at_its_next_turn():
    log: list[str] = []
    turns = Turns(1, 1)
    work, gate = gated(turns, log)
    work.cancelled = True
    gate.set()
    ended(work)
    assert log == ["first"] and work.error is None
    turns.stop(RuntimeError("over"))


@pytest.mark.parametrize("stops", [False, True])
def test_abort_tells_everybody(stops: bool):
    log: list[str] = []
    turns, error = Turns(2, 5), ShuttingDown("over")
    first, gate = gated(turns, log)
    works = [first, Steps("b", 2, log), Steps("c", 1, log), Steps("d", 1, log)]
    assert all(map(turns.put, works[1:]))
    if stops:
        stopping = threading.Thread(target=turns.stop, args=(error,))
        stopping.start()
        while not turns.over:
            time.sleep(0.001)
    else:
        turns.abort(error)
    gate.set()
    ended(*works)
    assert log == ["first"] and all(work.error is error and work.interrupted for work in works)
    if stops:
        stopping.join(30)
        assert not stopping.is_alive() and not turns.put(Steps("e", 1, log))
        return
    again = Steps("e", 1, log)
    assert turns.put(again)
    ended(again)
    assert again.error is None
    turns.stop(error)


def test_stop_does_not_wait_for_a_turn_that_hangs(monkeypatch):
    monkeypatch.setattr(taking_turns, "PATIENCE", 0.1)
    turns = Turns(1, 1)
    work, gate = gated(turns, [])
    turns.stop(RuntimeError("over"))
    assert not work.ended.is_set() and not turns.put(Steps("late", 1, []))
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "anydepth-model")
    gate.set()
    ended(work)


def test_a_panic_that_is_no_exception_ends_its_work_only():
    class Panicking(Steps):
        def turn(self) -> bool:
            raise BaseException("a panic of Rust code")

    turns = Turns(1, 2)
    broken, other = Panicking("broken", 1, []), Steps("other", 2, [])
    assert turns.put(broken) and turns.put(other)
    ended(broken, other)
    assert isinstance(broken.error, RuntimeError) and turns.live == 0
    turns.stop(RuntimeError("over"))


def test_a_turn_that_fails_ends_its_work_only(caplog):
    log: list[str] = []
    turns = Turns(3, 0)
    bad, good = Failing("bad", 5, log), Steps("good", 3, log)
    assert turns.put(bad) and turns.put(good)
    ended(bad, good)
    assert isinstance(bad.error, RuntimeError) and log.count("bad") == 1 and log.count("good") == 3
    turns.stop(RuntimeError("over"))
    assert turns.live == 0 and "a fault of ours" not in caplog.text and "RuntimeError" in caplog.text


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
    with pytest.raises(AnswerTimeout, match=r"the answer took over 0\.05 s; ask for fewer tokens"):
        await collect(engine)
    with pytest.raises(AnswerTimeout, match=r"the scan took over 0\.05 s; give a shorter text"):
        await engine.scan(Prompt((257, 104, 256, 258)), engine.facts.guard)
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


async def test_an_answer_that_is_whole_when_everything_is_aborted_is_no_error():
    engine = engine_of(Slow(["x"]))
    finished = Guard.turns

    def aborting(self: Guard, *args: Any, **options: Any) -> Any:
        for turn in finished(self, *args, **options):
            if isinstance(turn and turn[-1][1], Finished):
                engine.abort()
            yield turn

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Guard, "turns", aborting)
        assert isinstance((await collect(engine))[-1], Finished)
    await engine.stop()


async def test_a_request_that_comes_while_the_server_is_stopped_is_not_told_to_wait(monkeypatch):
    engine = engine_of(ScriptedBackend(["hello"]))
    put = Turns.put

    def late(self: Turns, work: Any) -> bool:
        self.stop(ShuttingDown("over"))  # between the question whether it runs and the place in its queue
        return put(self, work)

    monkeypatch.setattr(Turns, "put", late)
    with pytest.raises(ShuttingDown):
        await collect(engine)


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


async def test_a_session_that_cannot_be_closed_leaves_nobody_waiting():
    class Unclosable(ScriptedBackend):
        def open(self, *arguments, **options):
            session = super().open(*arguments, **options)

            def close():
                raise RuntimeError("stays open")

            session.close = close
            return session

    engine = engine_of(Unclosable(["hello"]), timeout=30)
    await engine.start()
    assert isinstance((await collect(engine))[-1], Finished)
    await engine.stop()


class Outside:
    """A detector that scores outside of the model's thread, after some seconds."""

    name = "elsewhere"
    needs: frozenset[Any] = frozenset()

    def __init__(self, score: float, seconds: float) -> None:
        self.score, self.seconds = score, seconds

    def bind(self, backend: Any) -> None:
        pass

    def check(self, session: Any, points: Any) -> list[Score]:
        raise AssertionError("it is begun, not made")

    def begin(self, session: Any, points: Any) -> list[Any]:
        found = [Future[Score]() for _ in points]
        for each in found:
            each.set_running_or_notify_cancel()
            timer = threading.Timer(self.seconds, each.set_result, [Score(self.score)])
            timer.daemon = True
            timer.start()
        return found


async def test_depth_0_of_a_scan_that_is_asked_about_elsewhere():
    """A request to `/v1/moderations` without an answer: the first turn has no event yet."""
    cascade = Cascade(ScriptedDetector({0: 0.5}), Outside(1.0, 0.02), 0.2, 0.8)
    guard = Guard.from_backend(ScriptedBackend(["hello"]), cascade)
    engine = TransformersEngine(guard, model="m", end_token_ids=frozenset({END}))
    result = await engine.scan(guard.template.prompt("hi"), guard.config)
    assert result.verdict.halt and [check.depth for check in result.checks] == [0]
    await engine.stop()


async def test_an_answer_that_nobody_waits_for_gives_its_place_back_though_its_check_hangs():
    cascade = Cascade(ScriptedDetector({0: 0.5}), Outside(0.0, 30), 0.2, 0.8)
    hanging = Guard.from_backend(ScriptedBackend(["hello"]), cascade)
    engine = TransformersEngine(hanging, model="m", live=1, end_token_ids=frozenset({END}))

    async def ask() -> None:
        async for _ in engine.submit(Job(hanging.template.prompt("hi"), hanging.config, 20)):
            pass

    asked = asyncio.create_task(ask())
    await asyncio.sleep(0.1)
    assert engine.stats.live == 1
    asked.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asked
    async with asyncio.timeout(5):
        while engine.stats.live:
            await asyncio.sleep(0.01)
    await engine.stop()
