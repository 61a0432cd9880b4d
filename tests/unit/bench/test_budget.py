"""The budget of `anydepth bench`, by a clock that only the measurements move."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from anydepth.bench.budget import Level, Standing, about, expected, spend


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Scripted:
    """Is estimated at one second per sample and token, and takes `factor` times that."""

    name: str
    clock: Clock
    levels: Sequence[Level] = (Level(4, 10), Level(2, 10), Level(1, 10))
    factor: float = 1.0
    made: list[Level] = field(default_factory=list)

    def estimate(self, level: Level) -> float:
        return level.samples * level.tokens

    def measure(self, level: Level, enough: Callable[[], bool]) -> Level:
        done = 0
        for _ in range(level.samples):
            self.clock.now += level.tokens * self.factor
            done += 1
            if enough():
                break
        self.made.append(Level(done, level.tokens))
        return self.made[-1]


def spent(measurements: Sequence[Scripted], budget: float) -> tuple[list[str], list[Standing]]:
    told: list[Standing] = []
    return spend(measurements, budget, measurements[0].clock, told.append), told


def test_all_is_measured_as_thoroughly_as_asked_where_there_is_time() -> None:
    clock = Clock()
    made = [Scripted("a", clock), Scripted("b", clock)]
    cuts, told = spent(made, 100)
    assert cuts == [] and clock.now == 80
    assert [each.made for each in made] == [[Level(4, 10)], [Level(4, 10)]]
    assert told == [Standing("a", 1, 2, 80), Standing("b", 2, 2, 40)]


def test_the_time_left_is_at_most_what_is_left_of_the_budget() -> None:
    clock = Clock()
    _, told = spent([Scripted("a", clock), Scripted("b", clock)], 50)
    assert told[0].left == 50 and told[1].left == 50 - 20
    assert expected([Scripted("a", clock)], 30) == 30 and expected([Scripted("a", clock)], 300) == 40


def test_what_does_not_fit_is_measured_less_often_and_said() -> None:
    clock = Clock()
    made = [Scripted("a", clock), Scripted("b", clock)]
    cuts, _ = spent(made, 50)
    assert clock.now <= 50
    assert made[0].made == [Level(2, 10)]
    assert cuts[0] == "a: 2 x 10 tokens instead of 4 x 10 tokens"


def test_the_dearest_is_left_out_first_and_said() -> None:
    clock = Clock()
    dear = Scripted("dear", clock, levels=(Level(1, 500),))
    made = [Scripted("a", clock), dear, Scripted("b", clock)]
    cuts, _ = spent(made, 100)
    assert cuts == ["dear: left out, it takes about 8 min and there were 60 s left"]
    assert dear.made == [] and made[2].made == [Level(4, 10)]


def test_something_dear_leaves_room_for_what_comes_after() -> None:
    clock = Clock()
    dear = Scripted("dear", clock, levels=(Level(1, 95),))
    later = Scripted("later", clock)
    cuts, told = spent([dear, later], 100)
    assert not dear.made and later.made
    said = "dear: left out, it takes about 2 min and there were 2 min left for this and others, which take less"
    assert cuts == [said]
    assert [each.name for each in told] == ["later"]


def test_nothing_is_measured_without_time() -> None:
    clock = Clock()
    made = [Scripted("a", clock), Scripted("b", clock)]
    cuts, _ = spent(made, 0)
    assert clock.now == 0 and len(cuts) == 2 and all("left out" in cut for cut in cuts)


@pytest.mark.parametrize("factor", [0.1, 0.7, 1.5, 2.5, 4.0])
@pytest.mark.parametrize("budget", [150, 400, 1000])
def test_estimates_that_are_wrong_are_made_up_for(factor: float, budget: float) -> None:
    """The first measurement may run over; its slack and what is learnt from it keep the whole near the budget."""
    clock = Clock()
    made = [Scripted(str(n), clock, factor=factor) for n in range(10)]
    cuts, _ = spent(made, budget)
    assert clock.now <= 1.1 * budget
    assert len(cuts) == sum(each.made != [each.levels[0]] for each in made)


def test_a_measurement_that_takes_far_longer_than_allowed_ends_early_and_is_said() -> None:
    clock = Clock()
    slow = Scripted("slow", clock, factor=5)
    cuts, _ = spent([slow], 45)
    assert slow.made == [Level(2, 10)] and cuts == ["slow: 2 x 10 tokens instead of 4 x 10 tokens"]


@pytest.mark.parametrize(
    ("seconds", "said"), [(-1, "0 s"), (0.0213, "0.021 s"), (4, "4 s"), (42.3, "42 s"), (89, "89 s"), (170, "3 min")]
)
def test_times_for_people(seconds: float, said: str) -> None:
    assert about(seconds) == said
