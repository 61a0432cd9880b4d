"""The driver: flows on a scripted session, one row and batches of rows."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anydepth.backends.protocol import CheckPoint
from anydepth.driver import drive, make_checks
from anydepth.flow import Halt, Outcome, Plan, Release, guarded
from anydepth.policy import Threshold
from anydepth.schedule import Every
from anydepth.templates.template import Prompt
from anydepth.testing import END, ScriptedBackend, ScriptedDetector, ScriptedSession
from anydepth.types import Checked, CheckResult, Score
from tests.unit.test_flow import plans, replies, scores

HEAD = (257, 104, 256, 258)


@dataclass
class Row:
    """What became of one row."""

    released: tuple[int, ...] = ()
    checks: list[CheckResult] = field(default_factory=list)
    halts: list[Halt] = field(default_factory=list)
    outcome: Outcome = None  # type: ignore[assignment]

    def essence(self) -> str:
        """Everything, as text: NaN is not NaN."""
        return repr(self)


@dataclass(frozen=True)
class Case:
    """A batch: a plan and an answer a row, and scores by row and depth."""

    plans: tuple[Plan, ...]
    answers: tuple[tuple[int, ...], ...]
    scores: tuple[Sequence[Any], ...]
    at_most: tuple[int, ...]
    finish: Any = "stop"

    def row(self, index: int) -> "Case":
        pick = slice(index, index + 1)
        return Case(self.plans[pick], self.answers[pick], self.scores[pick], (), self.finish)

    def score(self, row: int, depth: int) -> Any:
        return self.scores[row][depth % len(self.scores[row])]


def run(case: Case) -> tuple[list[Row], ScriptedSession]:
    backend = ScriptedBackend(case.answers, at_most=case.at_most, finish=case.finish)
    prompts = [Prompt(HEAD + (97,) * plan.prefill, plan.prefill) for plan in case.plans]
    session = backend.open(prompts, max_new_tokens=max(plan.max_new_tokens for plan in case.plans))
    rows = [Row() for _ in prompts]
    flows = [guarded(plan) for plan in case.plans]
    for index, step in drive(flows, session, ScriptedDetector(case.score)):
        row = rows[index]
        assert row.outcome is None, "nothing comes after the outcome"
        if isinstance(step, Release):
            row.released += step.token_ids
        elif isinstance(step, Checked):
            row.checks.append(step.check)
        elif isinstance(step, Halt):
            row.halts.append(step)
        elif isinstance(step, Outcome):
            row.outcome = step
    return rows, session


answers = st.builds(
    lambda length, ends: (*(i % 250 for i in range(length)), *([END] if ends else [])),
    st.integers(1, 60),
    st.booleans(),
)


@st.composite
def cases(draw: st.DrawFn, rows: int = 4, values: Any = replies, **fixed: Any) -> Case:
    count = draw(st.integers(1, rows))

    def each(strategy: st.SearchStrategy[Any]) -> tuple[Any, ...]:
        return tuple(draw(st.lists(strategy, min_size=count, max_size=count)))

    limits = tuple(draw(st.lists(st.integers(1, 12), max_size=4)))
    return Case(each(plans(**fixed)), each(answers), each(values), limits, draw(st.sampled_from(["stop", "length"])))


def tokens(case: Case, index: int) -> tuple[int, ...]:
    return case.answers[index][: case.plans[index].max_new_tokens]


@given(cases())
def test_a_row_of_a_batch_fares_as_it_does_alone(case: Case) -> None:
    rows, _ = run(case)
    for index, row in enumerate(rows):
        [alone], _ = run(case.row(index))
        assert row.essence() == alone.essence()


@given(cases())
def test_every_row_is_accounted_for(case: Case) -> None:
    rows, _ = run(case)
    for index, row in enumerate(rows):
        whole, plan, outcome = tokens(case, index), case.plans[index], row.outcome
        withheld = row.halts[0].withheld if row.halts else 0
        assert row.released == whole[: len(row.released)]
        assert len(row.released) + withheld == outcome.generated
        assert [plan.prefill, *(window.stop for window in outcome.windows)] == [
            *(window.start for window in outcome.windows),
            plan.prefill + outcome.generated,
        ]
        assert tuple(row.checks) == outcome.checks or any(check.error for check in row.checks)
        ended = whole[outcome.generated - 1 : outcome.generated] == (END,)
        if outcome.generated:
            assert row.checks[-1].depth == plan.prefill + outcome.generated - ended
        if plan.release == "hold":
            assert all((w.checked_at or 0) >= w.stop - (w is outcome.windows[-1] and ended) for w in outcome.windows)
        if outcome.finish_reason != "content_filter":
            assert row.released == whole


@given(cases(values=scores, release="hold"))
def test_what_is_not_halted_is_what_the_unguarded_script_says(case: Case) -> None:
    rows, _ = run(case)
    for index, row in enumerate(rows):
        clear = not row.halts
        assert clear == all(check.statistic < case.plans[index].policy.threshold for check in row.checks)
        assert (row.released == tokens(case, index)) == (
            clear or row.halts[0].withheld == 0 == len(tokens(case, index))
        )
        assert row.outcome.finish_reason in (("stop", "length") if clear else ("content_filter",))


@given(cases(release="monitor"))
def test_monitor_never_halts_a_row_and_agrees_with_hold(case: Case) -> None:
    watched, session = run(case)
    held = dataclasses.replace(case, plans=tuple(dataclasses.replace(plan, release="hold") for plan in case.plans))
    decided, _ = run(held)
    assert session.dropped == []
    for index, (one, other) in enumerate(zip(watched, decided, strict=True)):
        assert one.released == tokens(case, index)
        assert one.halts == []
        first, second = one.outcome.verdict, other.outcome.verdict
        assert repr(dataclasses.replace(first, errors=0)) == repr(dataclasses.replace(second, errors=0))


@given(cases())
def test_the_session_is_used_as_its_protocol_says(case: Case) -> None:
    """The scripted session raises at a check off its row's depth, and at a decode of less than one token."""
    rows, session = run(case)
    assert sorted(session.dropped) == [index for index, row in enumerate(rows) if row.halts]
    assert all(n <= max(plan.max_new_tokens for plan in case.plans) for n in session.decoded)
    for index, row in enumerate(rows):
        asked = [point.depth for point in session.checked if point.row == index]
        assert list(dict.fromkeys(asked)) == list(dict.fromkeys(check.depth for check in row.checks))


def answer(text: str) -> tuple[int, ...]:
    return (*text.encode(), END)


def test_checks_that_are_due_together_are_made_together() -> None:
    batches: list[list[CheckPoint]] = []

    class Counting(ScriptedDetector):
        def check(self, session: Any, points: Sequence[CheckPoint]) -> list[Score]:
            batches.append(list(points))
            return super().check(session, points)

    plan = Plan(Every(4, doubling=False), Threshold(), 8)
    session = ScriptedBackend([answer("abcdefgh"), answer("ab"), answer("abcdef")]).open(
        [Prompt(HEAD)] * 3, max_new_tokens=8
    )
    steps = list(drive([guarded(plan) for _ in range(3)], session, Counting({})))
    assert [[(point.row, point.depth) for point in batch] for batch in batches] == [
        [(0, 0), (1, 0), (2, 0)],
        [(1, 2)],  # ends first, and is checked before the others go on
        [(0, 4), (2, 4)],
        [(2, 6)],
        [(0, 8)],
    ]
    assert session.decoded == [4, 1, 4, 1]
    assert [row for row, step in steps if isinstance(step, Outcome)] == [1, 2, 0]


@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), math.nan, math.inf, 2.0, -0.5, "harmless", None])
@pytest.mark.parametrize("on_error", ["closed", "open"])
def test_a_failing_row_does_not_take_the_others_down(failure: Any, on_error: Any) -> None:
    def score(row: int, depth: int) -> Any:
        return failure if row == 1 and depth == 4 else 0.125

    plans = (Plan(Every(4), Threshold(), 20, on_error=on_error),) * 3
    case = Case(plans, (answer("abcdefgh"), answer("abcdefg"), answer("abcdefghij")), ((0,),) * 3, ())
    object.__setattr__(case, "score", score)
    (first, bad, last), session = run(case)
    for index, row in ((0, first), (2, last)):
        assert row.released == case.answers[index]
        assert row.outcome.verdict.errors == 0
    assert bad.outcome.verdict.errors == 1
    [failed] = [check for check in bad.checks if check.error]
    assert failed.depth == 4
    if on_error == "closed":
        assert bad.outcome.verdict.reason == "error"
        assert bad.released == case.answers[1][:2]
        assert session.dropped == [1]
    else:
        assert bad.outcome.verdict.reason == "clear"
        assert bad.released == case.answers[1]


class Faulty(ScriptedDetector):
    """Gives `made` instead of scores, whatever is asked."""

    def __init__(self, made: Any) -> None:
        super().__init__({})
        self.made = made

    def check(self, session: Any, points: Sequence[CheckPoint]) -> Any:
        return self.made


@pytest.mark.parametrize("made", [[], [Score(0.1)] * 3, None, 0.5])
def test_a_wrong_number_of_scores_is_a_failure_of_each(made: Any, caplog: pytest.LogCaptureFixture) -> None:
    session = ScriptedBackend([answer("a")] * 2).open([Prompt(HEAD)] * 2, max_new_tokens=5)
    with caplog.at_level(logging.WARNING, "anydepth"):
        replies = make_checks(session, Faulty(made), [CheckPoint(0, 0), CheckPoint(1, 0)])
    assert [isinstance(reply, Exception) for reply in replies] == [True, True]
    assert [record.getMessage().split(" failed")[0] for record in caplog.records] == ["check at depth 0"] * 2


def test_an_interrupt_is_not_a_failed_check() -> None:
    session = ScriptedBackend([answer("a")]).open([Prompt(HEAD)], max_new_tokens=5)
    with pytest.raises(KeyboardInterrupt):
        make_checks(session, ScriptedDetector({0: KeyboardInterrupt()}), [CheckPoint(0, 0)])


def test_a_failure_of_the_backend_itself_is_raised_and_releases_nothing() -> None:
    session = ScriptedBackend([answer("abc")]).open([Prompt(HEAD)], max_new_tokens=5)
    session.decode = lambda n: (_ for _ in ()).throw(RuntimeError("lost the device"))  # type: ignore[method-assign]
    seen = []
    with pytest.raises(RuntimeError, match="lost the device"):
        seen.extend(drive([guarded(Plan(Every(), Threshold(), 5))], session, ScriptedDetector({})))
    assert [step for _, step in seen if isinstance(step, Release)] == []
