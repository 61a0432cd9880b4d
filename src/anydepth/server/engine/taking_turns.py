"""Take turns: the works of a model run in one thread, one turn each."""

import logging
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

logger = logging.getLogger(__name__)


class Work(Protocol):
    """Something that is done in turns.

    Attributes:
        cancelled: True once nobody waits for it.
        error: Why it is to be ended before it is done, or None.
    """

    cancelled: bool
    error: Exception | None

    def turn(self) -> bool:
        """Do the next piece; False once there is none left."""
        ...

    def end(self) -> None:
        """Free what it holds, and hand `error` to whoever waits."""
        ...


class Turns:
    """A thread for at most `live` works under way; at most `queue` more wait, in order.

    A work joins the thread's queue again after each turn, so that the works under way take turns. One that is cancelled
    before its first turn is left out.

    Attributes:
        over: True once no more work is taken.
    """

    def __init__(self, live: int, queue: int) -> None:
        self._limit, self._room, self.over = live, live + queue, False
        self._lock = threading.Lock()
        self._live: set[Work] = set()
        self._waiting: deque[Work] = deque()
        self._thread = ThreadPoolExecutor(1, "anydepth-model")

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
            self._waiting.append(work)
            self._admit()
        return True

    def abort(self, error: Exception) -> None:
        """End everything that is waiting or under way with `error`, at its next turn."""
        with self._lock:
            self._admit(everything=True)
            for work in self._live:
                work.error = error

    def stop(self, error: Exception) -> None:
        """End everything with `error`, take no more work, and wait for the thread to end."""
        with self._lock:
            self.over = True
        self.abort(error)
        self._thread.shutdown()

    def _wanted(self) -> deque[Work]:
        return deque(work for work in self._waiting if not work.cancelled)

    def _admit(self, *, everything: bool = False) -> None:
        while self._waiting and (everything or len(self._live) < self._limit):
            work = self._waiting.popleft()
            self._live.add(work)
            self._thread.submit(self._turn, work)

    def _turn(self, work: Work) -> None:
        more = False
        try:
            more = not work.cancelled and work.error is None and work.turn()
        except Exception as error:  # a fault of ours: the others go on
            work.error = error
            logger.error("a turn failed with %s", type(error).__name__)
        with self._lock:
            if more and work.error is None:
                self._thread.submit(self._turn, work)
                return
            self._live.discard(work)
            self._admit()
        try:
            work.end()
        except Exception as error:
            logger.error("the end of a work failed with %s", type(error).__name__)
