"""Run guards in threads for clients that wait: answers and scans take turns, and each can be given up."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import closing
from math import ceil
from typing import TYPE_CHECKING, Any

from anydepth.driver import Waiting
from anydepth.errors import AnydepthError
from anydepth.gate import begin_gate
from anydepth.guard import Guard
from anydepth.scan import scan_turns
from anydepth.server.engine.engine import AnswerTimeout, Busy, EngineError, EngineStats, ShuttingDown
from anydepth.server.engine.taking_turns import Turns
from anydepth.templates.proposed_call import CallPrompt
from anydepth.templates.template import Prompt
from anydepth.types import Checked, Finished, GateVerdict, ScanResult, Verdict

if TYPE_CHECKING:
    from concurrent.futures import Future

Turning = Generator[list[tuple[int, Any]], None, None]
"""What is done in turns: each item has what came of one use of the model, by row."""


class Works:
    """Answers and scans under way.

    Args:
        live: How many at the same time.
        queue: How many more may wait.
        timeout: Seconds that each may take, waiting included.
        threads: Threads that they take turns in; with as many as `live`, none waits for another.
    """

    def __init__(self, live: int, queue: int, timeout: float, *, threads: int = 1) -> None:
        self._turns, self._live, self._timeout = Turns(live, queue, threads), live, timeout
        self._seconds = 1.0  # a running mean of what a work takes, for Retry-After

    @property
    def ready(self) -> bool:
        """True until `stop`."""
        return not self._turns.over

    @property
    def stats(self) -> EngineStats:
        """Works under way and waiting."""
        return EngineStats(self._turns.live, self._turns.waiting)

    async def stop(self) -> None:
        """End the threads; works under way get ShuttingDown."""
        await asyncio.to_thread(self._turns.stop, ShuttingDown("the server is shutting down"))

    def abort(self) -> None:
        """Give every work under way ShuttingDown, now."""
        self._turns.abort(ShuttingDown("the server is shutting down"))

    async def run(
        self, turns: Turning, interrupt: Callable[[], None] = lambda: None, *, what: str = "answer"
    ) -> AsyncGenerator[Any, None]:
        """Run a generator, one turn at a time; gives what is in the lists that it yields.

        Args:
            turns: The generator.
            interrupt: Ends a turn of it that is under way sooner, from another thread, once nobody waits for it.
            what: What it makes, an answer, a scan or a gate, for the message if it takes too long.

        Raises:
            Busy: There is no room.
            ShuttingDown: The server is being stopped.
            AnswerTimeout: It took too long.
            EngineError: It failed with an error that is not ours; errors of ours are raised as they are.
        """
        if self._turns.over:
            raise ShuttingDown("the server is shutting down")
        work = _Work(turns, asyncio.get_running_loop(), interrupt)
        begun = time.monotonic()
        deadline = begun + self._timeout
        if not self._turns.put(work):
            if self._turns.over:  # since it was asked above
                raise ShuttingDown("the server is shutting down")
            seconds = ceil(self._seconds * (self._turns.waiting + 1) / self._live)
            raise Busy("too many answers are waiting; ask again later", min(max(seconds, 1), 60))
        try:
            while True:
                try:
                    async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                        batch = await work.outbox.get()
                except TimeoutError:
                    remedy = "ask for fewer tokens" if what == "answer" else "give a shorter text, or ask again later"
                    raise AnswerTimeout(f"the {what} took over {self._timeout:g} s; {remedy}") from None
                if isinstance(batch, Exception):
                    raise batch
                for _, item in batch:
                    yield item
                if not batch:
                    self._seconds += 0.2 * (time.monotonic() - begun - self._seconds)
                    return
        finally:
            work.cancelled = True
            interrupt()
            self._turns.wake(work)


def scanning(guard: Guard, prompt: Prompt) -> Turning:
    """Check a finished answer, the prefill of `prompt`, at all its depths; without one, depth 0 only.

    The model is free while replies from outside are awaited.
    """
    if not prompt.prefill:
        yield from _first_check(guard, prompt)
    else:
        yield from scan_turns(guard.backend, guard.detector, guard.config, [prompt])


def gating(guard: Guard, call: CallPrompt, *, control: bool) -> Turning:
    """Judge a proposed tool call; the model is free while a reply from outside is awaited."""
    begun = begin_gate(guard.backend, guard.detector, guard.config, [call], control=control)
    if (outside := begun.outside) is not None:
        yield [(0, Waiting(outside))]
    yield [(0, begun.verdicts()[0])]


class _Work:
    """One answer, scan or gate on its way through the threads; implements `Work`."""

    def __init__(self, turns: Turning, loop: asyncio.AbstractEventLoop, interrupt: Callable[[], None]) -> None:
        self.cancelled, self.interrupt = False, interrupt
        self.error: Exception | None = None
        self.waits_for: Future[Any] | None = None
        self.outbox: asyncio.Queue[list[tuple[int, Any]] | Exception] = asyncio.Queue()
        self._turns, self._loop, self._over = turns, loop, False

    def turn(self) -> bool:
        """Use the model once."""
        self.waits_for = None
        try:
            batch = next(self._turns, None)
        except BaseException as error:  # a panic of Rust code is no Exception
            if self.error is None:  # else it was interrupted because of that
                self.error = _as_ours(error)
            return False
        if batch is None:
            return False
        if not batch:
            return True
        if isinstance(batch[-1][1], Waiting):
            *batch, (_, waiting) = batch
            self.waits_for = waiting.outside
            if not batch:
                return True
        self._over = isinstance(batch[-1][1], Finished | ScanResult | GateVerdict)
        self._tell(batch)
        return not self._over

    def end(self) -> None:
        """Close the session and tell that there is no more."""
        try:
            self._turns.close()
        finally:
            self._tell([] if self._over else self.error or [])

    def _tell(self, batch: list[tuple[int, Any]] | Exception) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.outbox.put_nowait, batch)


def _as_ours(error: BaseException) -> Exception:
    if isinstance(error, AnydepthError):
        return error
    ours = EngineError(f"the engine failed ({type(error).__name__}); the answer was stopped")
    ours.__cause__ = error
    return ours


def _first_check(guard: Guard, prompt: Prompt) -> Turning:
    """Check depth 0 of a conversation that has no answer yet."""
    guard = guard.with_options(release="hold")
    with closing(guard.turns([prompt], max_new_tokens=1, tells_waits=True)) as turns:
        events: list[Any] = []
        while not any(isinstance(event, Checked) for event in events):
            turn = next(turns)
            events += [event for _, event in turn]
            if turn and isinstance(turn[-1][1], Waiting):
                yield turn[-1:]
        check = next(event.check for event in events if isinstance(event, Checked))
        answer = next((event.answer for event in events if isinstance(event, Finished)), None)
    clear = Verdict(False, check.score, 0, errors=int(check.error is not None))
    verdict = clear if answer is None else answer.verdict
    yield [(0, ScanResult((check,), verdict, "forks", ("there is no answer yet: depth 0 only",)))]
