"""Where halts come from: the request alone, or the answer."""

import pytest

from anydepth.config import GuardConfig
from anydepth.evals.arms.answer_records import Trace
from anydepth.evals.suites.halt_figures import LATE, halted_late, halts, parts_of
from anydepth.policy import Ewma, Policy, Threshold


def trace(*checks: tuple[int, float | None]) -> Trace:
    return Trace(True, checks[0][0], None, 200, 0, tuple((depth, score, score) for depth, score in checks))


def test_the_parts_add_up_to_all_halts() -> None:
    found = list(halts("halted", [0, 0, 25, None, 100], {"arm": "probe"}, note="a note"))
    assert [(each.name, each.value, each.answers) for each in found] == [
        ("halted", 0.8, 5),
        ("halted at depth 0", 0.4, 5),
        ("halted by the answer", 0.4, 5),
    ]
    assert parts_of("halted") == tuple(each.name for each in found)
    assert {(each.note, each.group["arm"], each.unit) for each in found} == {("a note", "probe", "share")}
    assert all(each.interval is not None and each.interval[0] < (each.value or 0) < each.interval[1] for each in found)
    assert [each.value for each in halts("halted", [], {})] == [None, None, None]


def test_a_halt_depth_is_none_without_a_halt() -> None:
    assert trace((0, 0.9)).halt_depth == 0
    assert Trace(False, 50, 0.2, 200, 0, ()).halt_depth is None


@pytest.mark.parametrize(
    ("policy", "checks", "late"),
    [
        (Threshold(0.5), [(0, 0.9), (5, 0.9), (25, 0.4), (50, 0.4)], False),
        (Threshold(0.5), [(0, 0.9), (25, 0.5)], True),
        (Threshold(0.5), [(0, 0.1), (24, 0.9)], False),
        (Threshold(0.5), [(0, 0.9)], False),
        (Ewma(0.5, 0.6), [(0, 0.0), (10, 0.0), (25, 0.7)], True),  # the average begins with the late checks
        (Ewma(0.5, 0.6), [(0, 1.0), (10, 1.0), (25, 0.5)], False),
        (Threshold(0.5), [(25, 0.9), (25, 0.1)], False),  # the end of the turn is read again: one reading
        (Threshold(0.5), [(25, float("nan"))], True),
    ],
)
def test_late_checks_halt_on_their_own(policy: Policy, checks: list[tuple[int, float]], late: bool) -> None:
    assert halted_late(GuardConfig(policy=policy), trace(*checks)) is late


def test_a_late_check_that_failed_halts_unless_the_guard_is_open() -> None:
    failed = trace((0, 0.1), (LATE, None), (50, 0.1))
    assert halted_late(GuardConfig(policy=Threshold(0.5)), failed)
    assert not halted_late(GuardConfig(policy=Threshold(0.5), on_error="open"), failed)
    assert not halted_late(GuardConfig(policy=Threshold(0.5)), trace((5, None), (LATE, 0.1)))
    assert halted_late(GuardConfig(policy=Threshold(0.5)), trace((5, 0.9), (LATE, 0.1)), depth=5)
