"""What the stages of a cascade did, summed over checks."""

from anydepth.stages import Spent, StageUse, stage_sums, stages_of, with_stages
from anydepth.types import CheckResult, Score, stages_in

ASKED = (StageUse("probe", 0.5), StageUse("rethink", 1.0, Spent(look_ahead_tokens=7)))
PAID = StageUse("external", 2.0, Spent(0, 1, 0, 100, 2, 0.25))
FREE = StageUse("external", 2.0, Spent(0, 1, 1))


def test_the_last_stage_decided_unless_the_check_failed() -> None:
    sums = stage_sums([(ASKED[:1], False), (ASKED, False), ((*ASKED, PAID), False), ((*ASKED, FREE), True)])
    assert sums is not None
    assert {name: (each["checks"], each["decided"], each["seconds"]) for name, each in sums.items()} == {
        "probe": (4, 1, 2.0),
        "rethink": (3, 1, 3.0),
        "external": (2, 1, 4.0),
    }
    assert sums["rethink"]["look_ahead_tokens"] == 21 and sums["rethink"]["cost"] is None
    told = ("requests", "requests_without_usage", "prompt_tokens", "completion_tokens", "cost")
    assert [sums["external"][name] for name in told] == [2, 1, 100, 2, 0.25]


def test_a_detector_that_is_no_cascade_has_none() -> None:
    assert stage_sums([((), False)]) is None
    assert stages_in([CheckResult(0, 0.1, 0.1)]) is None


def test_stages_are_no_part_of_equality() -> None:
    assert Score(0.5, stages=ASKED) == Score(0.5)
    assert CheckResult(0, 0.5, 0.5, stages=ASKED) == CheckResult(0, 0.5, 0.5)


def test_an_error_keeps_the_stages() -> None:
    assert stages_of(with_stages(ValueError("x"), ASKED)) == ASKED
    assert stages_of(ValueError("x")) == () and stages_of(None) == ()
