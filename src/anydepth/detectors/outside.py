"""Work for a check that is done outside of the model's thread: futures with a deadline."""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, InvalidStateError
from contextlib import suppress
from typing import Any, Protocol, TypeVar, runtime_checkable

from anydepth.backends.protocol import CheckPoint, Session
from anydepth.detectors.detector import Detector
from anydepth.types import Score

Found = TypeVar("Found")
Made = TypeVar("Made")

Begun = Score | Future[Score]
"""The score of a check, or what will become of it."""


@runtime_checkable
class OutsideDetector(Detector, Protocol):
    """A detector some of whose scores come from outside, while which the model is free for other answers."""

    def begin(self, session: Session, points: Sequence[CheckPoint]) -> Sequence[Begun]:
        """Make the checks, as `Detector.check`; a future stands for a score that comes from outside.

        Whatever is needed of the session is taken before it returns. A future ends by itself, after a time limit of
        the detector's own at the latest, and raises what `check` would have raised.
        """
        ...


def within(seconds: float, work: Callable[[], Score], late: Callable[[], Exception], pool: Executor) -> Future[Score]:
    """Do `work` in a thread of `pool`.

    Args:
        seconds: After so many, the time in the pool's queue included, the future fails.
        work: Gives the score.
        late: Makes the error that the future then raises.
        pool: The threads.
    """
    promised: Future[Score] = Future()
    promised.set_running_or_notify_cancel()
    timer = threading.Timer(seconds, lambda: _fail(promised, late()))
    timer.daemon = True

    def run() -> None:
        if promised.done():
            return
        try:
            score = work()
        except BaseException as error:
            _fail(promised, error)
        else:
            with suppress(InvalidStateError):
                promised.set_result(score)
        timer.cancel()

    timer.start()
    pool.submit(run)
    return promised


def followed(begun: Future[Found], change: Callable[[Future[Found]], Made]) -> Future[Made]:
    """What `change` makes of a future that has ended; what it raises, the future that is returned raises."""
    changed: Future[Made] = Future()
    changed.set_running_or_notify_cancel()

    def settle(ended: Future[Found]) -> None:
        try:
            changed.set_result(change(ended))
        except BaseException as error:
            changed.set_exception(error)

    begun.add_done_callback(settle)
    return changed


def together(begun: Sequence[Future[Any]]) -> Future[None]:
    """A future that ends once all of these have, whatever became of them."""
    over: Future[None] = Future()
    over.set_running_or_notify_cancel()
    left, lock = len(begun), threading.Lock()

    def count(_: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            over.set_result(None)

    for each in begun:
        each.add_done_callback(count)
    if not begun:
        over.set_result(None)
    return over


def awaited(begun: Iterable[object]) -> Future[None] | None:
    """A future that ends once all futures in `begun` have; None if there is none, or all have ended."""
    pending = [each for each in begun if isinstance(each, Future) and not each.done()]
    return together(pending) if pending else None


def _fail(promised: Future[Score], error: BaseException) -> None:
    with suppress(InvalidStateError):
        promised.set_exception(error)
