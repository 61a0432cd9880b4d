"""Serve a Transformers model: one answer a session, the sessions take turns window by window."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from math import ceil
from typing import Any

from anydepth.audit.answer import Account
from anydepth.config import GuardConfig
from anydepth.errors import AnydepthError
from anydepth.guard import Guard
from anydepth.scan import scan_answer
from anydepth.server.answer.stops import StopText
from anydepth.server.engine.engine import (
    AnswerTimeout,
    Busy,
    EngineError,
    EngineFacts,
    EngineStats,
    Job,
    ShuttingDown,
)
from anydepth.server.engine.taking_turns import Turns
from anydepth.templates.template import Prompt
from anydepth.types import Checked, Event, Finished, ScanResult, Verdict

Turning = Generator[list[tuple[int, Any]], None, None]
"""What is done in turns: each item has what came of one use of the model, by row."""

GREEDY_BELOW = 0.01
"""Temperatures under this are greedy: dividing the scores by less overflows in half precision."""


class TransformersEngine:
    """Generates guarded answers.

    Attributes:
        facts: What does not change while it runs.
        on_check: Called with the seconds that each check took; the server sets it.

    Args:
        guard: The guard, its model loaded.
        model: Name that clients use.
        live: Answers generated at the same time.
        queue: Answers that may wait.
        timeout: Seconds that an answer may take, waiting included.
        end_token_ids: Tokens that end a turn, where the backend does not say.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        model: str,
        live: int = 4,
        queue: int = 32,
        timeout: float = 300,
        end_token_ids: frozenset[int] | None = None,
    ) -> None:
        backend: Any = guard.backend
        ends = end_token_ids if end_token_ids is not None else backend.end_tokens({})
        context = getattr(backend, "context_length", None)
        compile_grammar = getattr(backend, "grammar", None)
        self.facts = EngineFacts(model, guard.template, guard.config, frozenset(ends), context, compile_grammar)
        self.on_check: Callable[[float], None] = lambda seconds: None
        self._guard, self._timeout = guard, timeout
        self._turns, self._live = Turns(live, queue), live
        self._seconds = 1.0  # a running mean of what an answer takes, for Retry-After

    @property
    def ready(self) -> bool:
        """True if it can take answers: until it is stopped."""
        return not self._turns.over

    @property
    def stats(self) -> EngineStats:
        """Answers under way and waiting."""
        return EngineStats(self._turns.live, self._turns.waiting)

    async def start(self) -> None:
        """Do nothing: the model is loaded, and its thread starts with the first answer."""

    async def stop(self) -> None:
        """End the thread; answers under way get ShuttingDown."""
        await asyncio.to_thread(self._turns.stop, ShuttingDown("the server is shutting down"))

    def abort(self) -> None:
        """Give every answer under way ShuttingDown, now."""
        self._turns.abort(ShuttingDown("the server is shutting down"))

    def submit(self, job: Job, account: Account | None = None) -> AsyncGenerator[Event, None]:
        """Generate one answer: `Checked`, `Released`, at most one `Halted`, and `Finished` last.

        What is released is written into `account` before it leaves; where it cannot be, the answer is halted.
        Closing the iterator frees the work at the next window. Raises, before the first event, ConfigError or
        PromptError for a job that cannot be done and Busy for one that the queue has no room for; EngineError if the
        engine fails.
        """
        guard = self._guard.with_config(job.guard)
        turns = guard.turns(
            [job.prompt],
            max_new_tokens=job.max_new_tokens,
            seed=job.sampling.seed,
            accounts=[account],
            on_check=lambda seconds: self.on_check(seconds),
            whole=job.grammar is not None,
            **_generation(job, guard.backend),
        )
        return self._work(turns)

    async def scan(self, prompt: Prompt, guard: GuardConfig) -> ScanResult:
        """Check a finished answer, the prefill of `prompt`, at all its depths; without one, depth 0 only."""
        scanner = self._guard.with_config(guard)

        def turns() -> Turning:
            if not prompt.prefill:
                yield [(0, _first_check(scanner, prompt))]
            else:
                yield [(0, scan_answer(scanner.backend, scanner.detector, scanner.config, prompt))]

        async with aclosing(self._work(turns())) as results:
            return await anext(results)

    async def _work(self, turns: Turning) -> AsyncGenerator[Any, None]:
        """Run a generator in the thread, one turn at a time; gives what is in the lists that it yields."""
        if self._turns.over:
            raise ShuttingDown("the server is shutting down")
        work = _Work(turns, asyncio.get_running_loop())
        begun = time.monotonic()
        deadline = begun + self._timeout
        if not self._turns.put(work):
            seconds = ceil(self._seconds * (self._turns.waiting + 1) / self._live)
            raise Busy("too many answers are waiting; ask again later", min(max(seconds, 1), 60))
        try:
            while True:
                try:
                    async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                        batch = await work.outbox.get()
                except TimeoutError:
                    raise AnswerTimeout(f"the answer took over {self._timeout:g} s; ask for fewer tokens") from None
                if isinstance(batch, Exception):
                    raise batch
                for _, item in batch:
                    yield item
                if not batch:
                    self._seconds += 0.2 * (time.monotonic() - begun - self._seconds)
                    return
        finally:
            work.cancelled = True


class _Work:
    """One answer or scan on its way through the thread; implements `Work`."""

    def __init__(self, turns: Turning, loop: asyncio.AbstractEventLoop) -> None:
        self.cancelled = False
        self.error: Exception | None = None
        self.outbox: asyncio.Queue[list[tuple[int, Any]] | Exception] = asyncio.Queue()
        self._turns, self._loop, self._over = turns, loop, False

    def turn(self) -> bool:
        """Use the model until something came of it."""
        try:
            batch = next(filter(None, self._turns), [])
        except BaseException as error:  # a panic of Rust code is no Exception
            if isinstance(error, AnydepthError):
                self.error = error
            else:
                self.error = EngineError(f"the engine failed ({type(error).__name__}); the answer was stopped")
                self.error.__cause__ = error
            return False
        if not batch:
            return False
        self._over = isinstance(batch[-1][1], Finished | ScanResult)
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


def _generation(job: Job, backend: Any) -> dict[str, Any]:
    """The options of Transformers' `generate`; without any of them the model's own settings hold."""
    sampling = job.sampling
    drawn = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "min_p")}
    options: dict[str, Any] = {name: value for name, value in drawn.items() if value is not None}
    if options.get("temperature", 1) < GREEDY_BELOW:
        options = {"do_sample": False}
    elif options:
        options["do_sample"] = True
    if sampling.repetition_penalty is not None:
        options["repetition_penalty"] = sampling.repetition_penalty
    if sampling.stop:
        options["stopping_criteria"] = [StopText(sampling.stop, backend.decode_text)]
    if job.grammar is not None:
        options["grammar"] = job.grammar
    return options


def _first_check(guard: Guard, prompt: Prompt) -> ScanResult:
    """Check depth 0 of a conversation that has no answer yet."""
    guard = guard.with_options(release="hold")
    with closing(guard.turns([prompt], max_new_tokens=1)) as turns:
        events = [event for _, event in next(turns)]
        check = next(event.check for event in events if isinstance(event, Checked))
        answer = next((event.answer for event in events if isinstance(event, Finished)), None)
    clear = Verdict(False, check.score, 0, errors=int(check.error is not None))
    verdict = clear if answer is None else answer.verdict
    return ScanResult((check,), verdict, "forks", ("there is no answer yet: depth 0 only",))
