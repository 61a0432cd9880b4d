"""Schedules: at which depths an answer is checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anydepth.errors import ConfigError
from anydepth.flow import Check, Decode, Plan, guarded
from anydepth.policy import Threshold
from anydepth.schedule import Adaptive, Every, Listed, Schedule, next_check, scheduled_depths
from anydepth.types import Decoded, Score
from tests.unit.test_flow import schedules

unit = st.floats(0, 1)


def walk(schedule: Schedule, scores: Sequence[float], checks: int = 30) -> list[int]:
    """Depths of the first checks, the scores given in turn and then over again."""
    depths, seen = [0], [scores[0]]
    while len(depths) < checks:
        depths.append(schedule.next_after(depths[-1], seen))
        seen.append(scores[len(seen) % len(scores)])
    return depths


@given(schedules, st.lists(unit, min_size=1, max_size=30))
def test_depths_rise_strictly_and_start_at_one_token(schedule: Schedule, scores: list[float]) -> None:
    depths = walk(schedule, scores)
    assert all(before < after for before, after in pairwise(depths))
    first = schedule.interval if isinstance(schedule, Every) and not schedule.doubling else 1
    assert depths[1] == first


@pytest.mark.parametrize(
    ("schedule", "depths"),
    [
        (Every(25), [0, 1, 2, 4, 8, 16, 25, 50, 75]),  # the paper's 25, and a start that doubles
        (Every(16), [0, 1, 2, 4, 8, 16, 32, 48]),
        (Every(25, doubling=False), [0, 25, 50, 75]),
        (Every(1), [0, 1, 2, 3]),
        (Every(3), [0, 1, 2, 3, 6, 9]),
        (Adaptive(5, 50), [0, 1, 11, 31, 71, 121, 171]),  # calm: the gap doubles up to the widest
    ],
)
def test_the_walk_of_a_calm_answer(schedule: Schedule, depths: list[int]) -> None:
    assert walk(schedule, [0.0], len(depths)) == depths


@given(st.integers(1, 200), st.integers(0, 2000), st.booleans())
def test_every_keeps_its_interval(interval: int, generated: int, doubling: bool) -> None:
    following = Every(interval, doubling).next_after(generated, [])
    assert generated < following <= generated + interval
    if generated >= interval or not doubling:
        assert following % interval == 0
    else:
        assert following == interval or (following & (following - 1) == 0 and following <= 2 * max(generated, 1))


@given(st.integers(1, 20), st.integers(0, 60), unit, unit, st.lists(unit, min_size=1, max_size=40))
def test_adaptive_gaps_stay_between_closest_and_widest(
    closest: int, more: int, alert: float, rise: float, scores: list[float]
) -> None:
    schedule = Adaptive(closest, closest + more, alert, rise)
    depths = walk(schedule, scores)
    assert all(closest <= after - before <= closest + more for before, after in pairwise(depths[1:]))


def test_adaptive_is_dense_while_the_score_is_high_or_rises() -> None:
    schedule = Adaptive(5, 50, alert=0.3, rise=0.15)
    assert walk(schedule, [0.0, 0.0, 0.0, 0.3, 0.3, 0.0, 0.0], 7) == [0, 1, 11, 31, 36, 41, 51]
    assert walk(schedule, [0.0, 0.0, 0.0, 0.2, 0.2], 5) == [0, 1, 11, 31, 36], "0.2 is low, but it rose by 0.2"
    assert walk(schedule, [0.0, 0.0, 0.0, 0.1, 0.2], 5) == [0, 1, 11, 31, 71], "rose by 0.1 each time"


@pytest.mark.parametrize("value", [0, -1, True, False, 25.0, "25", None])
@pytest.mark.parametrize(("kind", "name"), [(Every, "interval"), (Adaptive, "closest"), (Adaptive, "widest")])
def test_counts_of_tokens_are_positive_whole_numbers(kind: Any, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value!r}"):
        kind(**{name: value})


@pytest.mark.parametrize("name", ["alert", "rise"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_adaptive_compares_with_scores(name: str, value: Any) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=f"{name} is {value!r}"):
        Adaptive(**options)


def test_widest_is_not_below_closest() -> None:
    with pytest.raises(ConfigError, match=r"widest is 4, below closest \(5\)"):
        Adaptive(5, 4)
    assert walk(Adaptive(5, 5), [0.0], 4) == [0, 1, 6, 11]


@given(schedules, st.integers(0, 300))
def test_scheduled_depths_are_those_that_the_flow_checks(schedule: Schedule, length: int) -> None:
    depths = scheduled_depths(schedule, length)
    assert depths[0] == 0
    assert depths[-1] == length
    if length:
        assert depths == flow_depths(schedule, length) == flow_depths(Listed(tuple(depths[1:])), length)


def flow_depths(schedule: Schedule, length: int) -> list[int]:
    """Depths that the guard checks in an alarming answer of `length` tokens: an adaptive schedule is at its densest."""
    flow, reply, depths = guarded(Plan(schedule, Threshold(), length, release="monitor")), None, []
    while True:
        try:
            command = flow.send(reply)
        except StopIteration:
            return depths
        reply = None
        if isinstance(command, Check):
            depths.append(command.depth)
            reply = Score(1.0)
        elif isinstance(command, Decode):
            reply = Decoded((0,) * command.n)


@dataclass(frozen=True)
class Stuck:
    """A schedule of a user that forgets to go on."""

    def next_after(self, generated: int, scores: Sequence[float]) -> int:
        return min(generated + 1, 3)


def test_a_schedule_that_does_not_go_on_is_an_error_and_not_an_endless_loop() -> None:
    assert next_check(Stuck(), 2, []) == 3
    for endless in (lambda: scheduled_depths(Stuck(), 9), lambda: flow_depths(Stuck(), 9)):
        with pytest.raises(ConfigError, match=r"Stuck\(\) gave 3 as the check after 3 tokens"):
            endless()
