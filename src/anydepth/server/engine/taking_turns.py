"""Run the work of a model in one thread, taking turns between the answers."""

import logging
import threading
from collections import deque
from typing import Protocol

logger = logging.getLogger(__name__)


class Work(Protocol):
    """Something that is done in turns."""

    cancelled: bool

    def turn(self) -> bool:
        """Do the next piece; False once there is none left. What goes wrong is told to whoever waits, not raised."""
        ...

    def end(self, error: Exception | None = None) -> None:
        """Free what it holds; `error` is told to whoever waits."""
        ...


class Worker:
    """One thread, at most `live` works under way, which get one turn at a time; at most `queue` more wait, in order."""

    def __init__(self, live: int, queue: int) -> None:
        self._limit, self._room = live, live + queue
        self._waiting: deque[Work] = deque()
        self._live: deque[Work] = deque()
        self._wake = threading.Condition()
        self._aborting: Exception | None = None
        self._stopping, self._busy = False, 0
        self._thread = threading.Thread(target=self._run, name="anydepth-worker", daemon=True)

    @property
    def live(self) -> int:
        """Works under way."""
        return len(self._live) + self._busy

    @property
    def waiting(self) -> int:
        """Works that have not begun."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def put(self, work: Work) -> bool:
        """Queue a piece of work, from any thread; False if there is no room, or no more work is taken."""
        with self._wake:
            wanted = sum(not waiting.cancelled for waiting in self._waiting)
            if self._stopping or self._busy + len(self._live) + wanted >= self._room:
                return False
            self._waiting.append(work)
            self._wake.notify()
            return True

    def abort(self, error: Exception) -> None:
        """End everything that is waiting or under way with `error`, at the next turn."""
        with self._wake:
            self._aborting = error
            self._wake.notify()

    def stop(self, error: Exception) -> None:
        """End everything with `error`, then the thread."""
        with self._wake:
            self._stopping = True
        self.abort(error)

    def join(self, timeout: float) -> None:
        """Wait for the thread to end."""
        if self.alive:
            self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            stopping, error, doomed = self._admit()
            for work in doomed:
                work.end(error)
            if stopping:
                return
            if self._live:
                with self._wake:
                    work, self._busy = self._live.popleft(), 1
                more = self._turn(work)
                with self._wake:
                    self._busy = 0
                    if more:
                        self._live.append(work)

    def _turn(self, work: Work) -> bool:
        try:
            if not work.cancelled and work.turn():
                return True
            work.end()
        except Exception as error:  # a turn tells its errors itself; this is a fault of ours, and the others go on
            logger.error("a turn failed with %s", type(error).__name__)
            work.end(error)
        return False

    def _admit(self) -> tuple[bool, Exception | None, list[Work]]:
        """Wait until there is something to do, and move waiting work to the free places.

        Returns whether the thread is to end, and what is to be ended with which error (None: nobody waits for it).
        """
        with self._wake:
            while not (self._waiting or self._live or self._aborting):
                self._wake.wait()
            error, self._aborting = self._aborting, None
            if error is not None:
                doomed = [*self._live, *self._waiting]
                self._live.clear()
                self._waiting.clear()
                return self._stopping, error, doomed
            doomed = [work for work in self._waiting if work.cancelled]
            if doomed:
                self._waiting = deque(work for work in self._waiting if not work.cancelled)
            while self._waiting and len(self._live) < self._limit:
                self._live.append(self._waiting.popleft())
            return False, None, doomed
