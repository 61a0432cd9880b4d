"""Carry out the commands of the flows of a batch on one session."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from anydepth.backends.protocol import CheckPoint, Session
from anydepth.detectors.detector import Detector
from anydepth.flow import Check, Command, Decode, Flow, Halt, Outcome, Reply, step
from anydepth.types import Decoded, Score

logger = logging.getLogger(__name__)

HandOut = Callable[[int, Command | Outcome], Reply]
"""A function that carries out a command that needs no model, or takes an outcome, of a row; returns the reply."""

OnCheck = Callable[[float], None]
"""A function that is called once per check with the seconds that it took; checks made together share their time."""


def unobserved(seconds: float) -> None:
    """Take no notice of how long a check took."""


class Driver:
    """Runs one flow per row of a session, one use of the model at a time.

    Checks that are due at the same time are made together; all rows decode together.

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
        self._waiting: dict[int, Check | Decode] = {}
        for row in range(len(flows)):
            self._send(row, None)

    @property
    def over(self) -> bool:
        """True once every flow has ended."""
        return not self._waiting

    def turn(self) -> None:
        """Use the model once, for all checks that are due or else to decode, and carry out what follows from it."""
        checks = [CheckPoint(row, each.depth) for row, each in self._waiting.items() if isinstance(each, Check)]
        if checks:
            begin = time.perf_counter()
            replies = make_checks(self._session, self._detector, checks)
            share_time(self._on_check, time.perf_counter() - begin, len(checks))
            for point, reply in zip(checks, replies, strict=True):
                self._send(point.row, reply)
        else:
            count = min(each.n for each in self._waiting.values() if isinstance(each, Decode))
            decoded = self._session.decode(count)
            for row in list(self._waiting):
                self._send(row, decoded[row])

    def _send(self, row: int, reply: Reply) -> None:
        """Send a reply to a row's flow, and carry out commands until one needs the model."""
        command = step(self._flows[row], reply)
        while not isinstance(command, Check | Decode):
            if isinstance(command, Halt):
                self._session.drop(row)
            reply = self._hand_out(row, command)
            if isinstance(command, Outcome):
                self._waiting.pop(row, None)
                return
            command = step(self._flows[row], reply)
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
    """Make the checks together; if that fails, one by one, so that a row's failure is its own."""
    try:
        scores = detector.check(session, points)
        if len(scores) != len(points):
            raise RuntimeError(f"{detector.name} gave {len(scores)} scores for {len(points)} checks")
        return list(scores)
    except Exception as error:
        if len(points) > 1:
            return [reply for point in points for reply in make_checks(session, detector, [point])]
        logger.warning("check at depth %d failed: %s: %s", points[0].depth, type(error).__name__, error)
        return [error]
