"""Carry out the commands of the flows of a batch on one session."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence

from anydepth.backends.protocol import CheckPoint, Session
from anydepth.detectors.detector import Detector
from anydepth.flow import Check, Command, Decode, Flow, Halt, Noted, Outcome, Release, Reply
from anydepth.types import Score

logger = logging.getLogger(__name__)


Step = Noted | Release | Halt | Outcome
"""What a driver hands out: what became of a check, tokens that leave, a halt, the end."""

OnCheck = Callable[[float], None]
"""A function that is called once per check with the seconds that it took; checks made together share their time."""


def unobserved(seconds: float) -> None:
    """Take no notice of how long a check took."""


def drive(flows: Sequence[Flow], session: Session, detector: Detector) -> Iterator[tuple[int, Step]]:
    """Run one flow per row of `session`; yields `(row, step)`, an `Outcome` last for each row.

    Checks that are due at the same time are made together; all rows decode together.
    """
    return (item for item in drive_paced(flows, session, detector) if item is not None)


def drive_paced(
    flows: Sequence[Flow], session: Session, detector: Detector, on_check: OnCheck = unobserved
) -> Iterator[tuple[int, Step] | None]:
    """`drive`, and a None before each use of the model: another session may use it first."""
    waiting: dict[int, Command | Outcome] = {row: next(flow) for row, flow in enumerate(flows)}
    while waiting:
        for row in list(waiting):
            yield from _carry_out(row, waiting, flows[row], session)
        if waiting:
            yield None
        checks = {row: command for row, command in waiting.items() if isinstance(command, Check)}
        if checks:
            points = [CheckPoint(row, command.depth) for row, command in checks.items()]
            begin = time.perf_counter()
            replies = make_checks(session, detector, points)
            share_time(on_check, time.perf_counter() - begin, len(points))
            for row, reply in zip(checks, replies, strict=True):
                waiting[row] = _send(flows[row], reply)
        elif waiting:
            decoded = session.decode(min(command.n for command in waiting.values() if isinstance(command, Decode)))
            for row in waiting:
                waiting[row] = _send(flows[row], decoded[row])


def _carry_out(
    row: int, waiting: dict[int, Command | Outcome], flow: Flow, session: Session
) -> Iterator[tuple[int, Step]]:
    """Carry out what needs no model: notes, releases, halts and the end."""
    while isinstance(command := waiting[row], Step):
        if isinstance(command, Halt):
            session.drop(row)
        yield row, command
        if isinstance(command, Outcome):
            del waiting[row]
            return
        waiting[row] = _send(flow, None)


def _send(flow: Flow, reply: Reply) -> Command | Outcome:
    try:
        return flow.send(reply)
    except StopIteration as end:
        return end.value


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
