"""Carry out the commands of the flows of a batch on one session."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from anydepth.backends.protocol import CheckPoint, Session
from anydepth.detectors import Detector, OutsideDetector
from anydepth.flow import Check, Command, Decode, Flow, Gate, Halt, Outcome, Reply, step
from anydepth.types import Decoded, Score

logger = logging.getLogger(__name__)

HandOut = Callable[[int, Command | Outcome], Reply | Future[Any]]
"""Carries out a command other than `Check` and `Decode`, or takes an outcome, of a row; returns the reply.

To `Gate` it may return a future of the reply, which does not fail.
"""

OnCheck = Callable[[float], None]
"""A function that is called once per check with the seconds that it took; checks made together share their time."""


def unobserved(seconds: float) -> None:
    """Take no notice of how long a check took."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Stands among events: nothing can be done for these answers before `outside` has ended; the model is free."""

    outside: Future[Any]


@dataclass(frozen=True, slots=True)
class _Outside:
    """A check, or those after an answer's calls, made outside: what will become of it, and when it was begun."""

    depth: int
    reply: Future[Any]
    begun: float


class Driver:
    """Runs one flow per row of a session, one use of the model at a time.

    Checks that are due at the same time are made together; all rows decode together. While a check is made outside (an
    `OutsideDetector`), other rows are checked, but none decodes.

    Args:
        flows: One per row.
        session: Decodes and forks.
        detector: Makes the checks.
        hand_out: Called with each row and command other than `Check` and `Decode`, and with each row's outcome last.
        on_check: Called with the seconds that each check took.
    """

    def __init__(
        self,
        flows: Sequence[Flow],
        session: Session,
        detector: Detector,
        hand_out: HandOut,
        on_check: OnCheck = unobserved,
    ) -> None:
        self._flows, self._session, self._detector = flows, session, detector
        self._hand_out, self._on_check = hand_out, on_check
        self._waiting: dict[int, Check | Decode | Gate] = {}
        self._outside: dict[int, _Outside] = {}
        for row in range(len(flows)):
            self._send(row, None)

    @property
    def over(self) -> bool:
        """True once every flow has ended."""
        return not self._waiting

    @property
    def waits(self) -> Waiting | None:
        """What the next turn would wait for, if it can do nothing else."""
        pending = [each.reply for each in self._outside.values()]
        if not pending or self._due() or any(each.done() for each in pending):
            return None
        return Waiting(pending[0])

    def turn(self) -> None:
        """Use the model once, for all checks that are due or else to decode, and carry out what follows from it.

        If there is nothing to do before a check that is made outside has ended, wait for that instead.
        """
        checks = self._due()
        if self._outside and (not checks or any(each.reply.done() for each in self._outside.values())):
            self._settle()
        elif checks:
            begin = time.perf_counter()
            replies = begin_checks(self._session, self._detector, checks)
            share, here = (time.perf_counter() - begin) / len(checks), list[tuple[int, Score | Exception]]()
            for point, reply in zip(checks, replies, strict=True):
                if isinstance(reply, Future):
                    self._outside[point.row] = _Outside(point.depth, reply, time.perf_counter() - share)
                else:
                    here.append((point.row, reply))
            share_time(self._on_check, share * len(here), len(here))
            for row, reply in here:
                self._send(row, reply)
        else:
            count = min(each.n for each in self._waiting.values() if isinstance(each, Decode))
            decoded = self._session.decode(count)
            for row in list(self._waiting):
                self._send(row, decoded[row])

    def _due(self) -> list[CheckPoint]:
        """The checks that are due and have not begun."""
        due = {row: each for row, each in self._waiting.items() if isinstance(each, Check) and row not in self._outside}
        return [CheckPoint(row, each.depth) for row, each in due.items()]

    def _settle(self) -> None:
        """Take in the checks that have ended outside; wait until one has."""
        wait([each.reply for each in self._outside.values()], return_when=FIRST_COMPLETED)
        for row, each in list(self._outside.items()):
            if each.reply.done():
                del self._outside[row]
                if isinstance(self._waiting[row], Gate):
                    self._send(row, each.reply.result())
                else:
                    self._on_check(time.perf_counter() - each.begun)
                    self._send(row, settled(each.reply, each.depth))

    def _send(self, row: int, reply: Reply) -> None:
        """Send a reply to a row's flow, and carry out commands until one needs the model."""
        command = step(self._flows[row], reply)
        while not isinstance(command, Check | Decode):
            if isinstance(command, Halt):
                self._session.drop(row)
            given = self._hand_out(row, command)
            if isinstance(command, Outcome):
                self._waiting.pop(row, None)
                return
            if isinstance(given, Future):
                assert isinstance(command, Gate)
                self._outside[row] = _Outside(0, given, time.perf_counter())
                break
            command = step(self._flows[row], given)
        self._waiting[row] = command


def drive(flows: Sequence[Flow], session: Session, detector: Detector) -> Iterator[tuple[int, Command | Outcome]]:
    """Run one flow per row of `session`; yields what a `Driver` hands out as `(row, command)`, an `Outcome` last."""
    steps: list[tuple[int, Command | Outcome]] = []
    driver = Driver(flows, session, detector, lambda row, command: steps.append((row, command)))
    while not driver.over:
        driver.turn()
        yield from steps
        steps.clear()


def settle(
    flow: Flow, command: Command | Outcome, decode: Callable[[int], Decoded], scores: Mapping[int, Score | Exception]
) -> Check | Outcome:
    """Run a flow on whose answer has been written already.

    Args:
        flow: The flow.
        command: What it waits for.
        decode: Gives up to that many more tokens.
        scores: The scores that are known, by depth.

    Returns:
        The flow's outcome, or the first check whose score is not known.
    """
    while not isinstance(command, Outcome):
        reply: Reply = None
        if isinstance(command, Check):
            if command.depth not in scores:
                return command
            reply = scores[command.depth]
        elif isinstance(command, Decode):
            reply = decode(command.n)
        command = step(flow, reply)
    return command


def share_time(on_check: OnCheck, seconds: float, checks: int) -> None:
    """Call `on_check` once for each of `checks` that were made together in `seconds`, with its share."""
    for _ in range(checks):
        on_check(seconds / checks)


def make_checks(session: Session, detector: Detector, points: Sequence[CheckPoint]) -> list[Score | Exception]:
    """Make the checks together, and wait for those that are made outside; see `begin_checks`."""
    begun = begin_checks(session, detector, points)
    return [settled(each, point.depth) for point, each in zip(points, begun, strict=True)]


def begin_checks(
    session: Session, detector: Detector, points: Sequence[CheckPoint]
) -> list[Score | Exception | Future[Score]]:
    """Make the checks together; if that fails, one by one, so that a row's failure is its own.

    A future stands for a check that is made outside; see `OutsideDetector`.
    """
    try:
        begin = detector.begin if isinstance(detector, OutsideDetector) else detector.check
        scores = begin(session, points)
        if len(scores) != len(points):
            raise RuntimeError(f"{detector.name} gave {len(scores)} scores for {len(points)} checks")
        return list(scores)
    except Exception as error:
        if len(points) > 1:
            return [reply for point in points for reply in begin_checks(session, detector, [point])]
        return [_failed(error, points[0].depth)]


def settled(begun: Score | Exception | Future[Score], depth: int) -> Score | Exception:
    """The score of a check at `depth`, or the exception that stands for it; waits for a future."""
    if not isinstance(begun, Future):
        return begun
    error = begun.exception()
    if error is None:
        return begun.result()
    return _failed(error if isinstance(error, Exception) else RuntimeError(type(error).__name__), depth)


def _failed(error: Exception, depth: int) -> Exception:
    logger.warning("check at depth %d failed: %s: %s", depth, type(error).__name__, error)
    return error
