"""Take turns: the works of a model run in one thread, or a few, one turn each."""

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Protocol

logger = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds that `stop` waits for a turn that hangs."""


class Work(Protocol):
    """Something that is done in turns.

    Attributes:
        cancelled: True once nobody waits for it.
        error: Why it is to be ended before it is done, or None.
        waits_for: What has to end elsewhere before its next turn can do anything, by its last turn; or None.
    """

    cancelled: bool
    error: Exception | None
    waits_for: Future[Any] | None

    def turn(self) -> bool:
        """Do the next piece; False once there is none left."""
        ...

    def end(self) -> None:
        """Free what it holds, and hand `error` to whoever waits."""
        ...

    def interrupt(self) -> None:
        """End a turn that is under way sooner, if that can be done; from another thread."""
        ...


class Turns:
    """Threads for at most `live` works under way; at most `queue` more wait, in order.

    A work joins the threads' queue again after each turn, so that the works under way take turns. One that is cancelled
    before its first turn is left out. One that waits for something elsewhere joins once that has ended.

    Args:
        live: Works under way at most.
        queue: Works that may wait.
        threads: How many threads there are.

    Attributes:
        over: True once no more work is taken.
    """

    def __init__(self, live: int, queue: int, threads: int = 1) -> None:
        self._limit, self._room, self.over = live, live + queue, False
        self._lock = threading.Lock()
        self._live: set[Work] = set()
        self._parked: set[Work] = set()
        self._waiting: deque[Work] = deque()
        self._due: SimpleQueue[Work | None] = SimpleQueue()
        # A daemon, which an executor's thread is not: a turn that hangs must not keep the process from ending.
        self._threads = [threading.Thread(target=self._run, name="anydepth-model", daemon=True) for _ in range(threads)]

    @property
    def live(self) -> int:
        """Works under way."""
        return len(self._live)

    @property
    def waiting(self) -> int:
        """Works that have not begun and that somebody waits for."""
        with self._lock:
            return len(self._wanted())

    def put(self, work: Work) -> bool:
        """Queue a piece of work, from any thread; False if there is no room, or no more work is taken."""
        with self._lock:
            self._waiting = self._wanted()  # the others have not begun, and hold nothing
            if self.over or len(self._live) + len(self._waiting) >= self._room:
                return False
            if (idle := next((each for each in self._threads if each.ident is None), None)) is not None:
                idle.start()
            self._waiting.append(work)
            self._admit()
        return True

    def abort(self, error: Exception) -> None:
        """End everything that is waiting or under way with `error`, at its next turn."""
        with self._lock:
            self._admit(everything=True)
            for work in self._live:
                work.error = error
                work.interrupt()
            for work in self._parked:
                self._due.put(work)
            self._parked.clear()

    def stop(self, error: Exception) -> None:
        """End everything with `error`, take no more work, and wait at most `PATIENCE` for the threads to end."""
        with self._lock:
            self.over = True
        self.abort(error)
        begun = [each for each in self._threads if each.ident is not None]
        for _ in begun:
            self._due.put(None)
        deadline = time.monotonic() + PATIENCE
        for each in begun:
            each.join(max(0.0, deadline - time.monotonic()))

    def _wanted(self) -> deque[Work]:
        return deque(work for work in self._waiting if not work.cancelled)

    def _admit(self, *, everything: bool = False) -> None:
        while self._waiting and (everything or len(self._live) < self._limit):
            work = self._waiting.popleft()
            self._live.add(work)
            self._due.put(work)

    def wake(self, work: Work) -> None:
        """Give a work that waits for something elsewhere its next turn: that has ended, or nobody waits for it."""
        with self._lock:
            if work in self._parked:
                self._parked.remove(work)
                self._due.put(work)

    def _run(self) -> None:
        for work in iter(self._due.get, None):
            self._turn(work)

    def _turn(self, work: Work) -> None:
        more = False
        try:
            more = not work.cancelled and work.error is None and work.turn()
        except BaseException as error:  # a fault of ours, or a panic of Rust code: the others go on
            work.error = error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
            logger.error("a turn failed with %s", type(error).__name__)
        with self._lock:
            again, outside = more and work.error is None, work.waits_for
            if not again:
                self._live.discard(work)
                self._admit()
            elif outside is None:
                self._due.put(work)
            else:
                self._parked.add(work)
        if again:
            if outside is not None:  # not under the lock: if it has ended already, `wake` is called here
                outside.add_done_callback(lambda _: self.wake(work))
            return
        try:
            work.end()
        except BaseException as error:
            logger.error("the end of a work failed with %s", type(error).__name__)
