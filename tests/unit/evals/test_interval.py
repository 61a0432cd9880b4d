"""The suite interval on a tiny model."""

from pathlib import Path
from typing import Any

import pytest

from anydepth import Every, Guard
from anydepth.evals.answers.answer_tables import chosen
from anydepth.evals.context import Context
from anydepth.evals.figure import Summary
from anydepth.evals.suites import interval
from anydepth.evals.suites.interval import INTERVALS, Costs
from anydepth.evals.transcript import Transcript
from anydepth.flow import Outcome
from anydepth.policy import Ewma, Threshold
from anydepth.templates.template import Prompt
from anydepth.types import CheckResult, Verdict
from tests.evaluations import random_probe, tiny_backend, tiny_context


@pytest.fixture(autouse=True)
def costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes two seconds and a check one; nothing is timed in these tests."""
    times = {"step": [2.0, 2.0], "check": [1.0, 1.0]}
    monkeypatch.setattr(interval, "check_times", lambda backend, detectors, context, samples: (context, times))


def context_of(tmp_path: Path, **given: Any) -> Context:
    backend = given.pop("backend", None) or tiny_backend()
    probe = given.pop("given_probe", None) or random_probe(backend, seed=4, policy=Ewma(0.4, 0.62))
    options = {"settings": {"interval.tokens": "60"}, **given.pop("options", {})}
    return tiny_context(tmp_path, "interval", backend=backend, given_probe=probe, options=options, **given)


def run(context: Context) -> Summary:
    try:
        return interval.run(context)
    finally:
        context.close()


def values(summary: Summary, name: str, **group: Any) -> dict[Any, float | None]:
    found = [figure for figure in summary.figures if figure.name == name]
    return {
        f.group["interval"]: f.value for f in found if {k: v for k, v in f.group.items() if k != "interval"} == group
    }


def test_every_interval_halts_as_a_live_guard_would(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    summary = run(context)
    rows = chosen(context, "harmful", 4)
    seen = set()
    for every in INTERVALS:
        outcomes = []
        for row in rows:
            whole = context.prompt(row, prefill=row.response)
            guard = Guard.from_backend(context.backend, context.probe, schedule=Every(every))
            outcomes.append(halts(guard, context, whole))
        share = sum(outcomes) / len(outcomes)
        seen.add(share)
        assert values(summary, "halted", start="doubling")[every] == share
    assert seen - {0.0, 1.0}, "some answers are to be halted and some are not"


def halts(guard: Guard, context: Context, whole: Prompt) -> bool:
    from anydepth.scan import scan_answer

    return scan_answer(context.backend, guard.detector, guard.config, whole).verdict.halt


def test_a_longer_interval_checks_less_and_costs_less(tmp_path: Path) -> None:
    summary = run(context_of(tmp_path))
    for name in ("checks", "overhead"):
        even = [value or 0 for value in values(summary, name, start="even").values()]
        assert even == sorted(even, reverse=True) and even[0] > even[2]
    doubling, even = (values(summary, "checks", start=start) for start in ("doubling", "even"))
    assert all((doubling[every] or 0) > (even[every] or 0) for every in (25, 50, 100, 200))


def test_what_leaves_before_a_halt_grows_when_it_is_sent_first(tmp_path: Path) -> None:
    backend = tiny_backend()
    summary = run(context_of(tmp_path, backend=backend, given_probe=random_probe(backend, policy=Threshold(0.0))))
    assert set(values(summary, "leak", start="even", release="hold").values()) == {0.0}  # halted at depth 0
    late = random_probe(backend, seed=5, policy=Threshold(0.77))
    summary = run(context_of(tmp_path, backend=backend, given_probe=late, folder=tmp_path / "late"))
    for start in ("even", "doubling"):
        held, sent = (values(summary, "harmful tokens out", start=start, release=r) for r in ("hold", "eager"))
        assert all((sent[every] or 0) >= (held[every] or 0) for every in INTERVALS)
    held, sent = (values(summary, "leak", start="even", release=release)[5] for release in ("hold", "eager"))
    assert held is not None and sent is not None
    assert 0 < held < sent <= held + 5, "the window of the halt itself"


def test_the_pareto_chart_has_a_point_an_interval_and_marks_the_default(tmp_path: Path) -> None:
    summary = run(context_of(tmp_path))
    pareto, late = summary.charts[:2]
    assert pareto.kind == late.kind == "scatter" and set(late.points) == set(pareto.points)
    assert set(pareto.points) == {
        f"{release}, {start}" for release in ("hold", "eager") for start in ("doubling", "even")
    }
    assert {len(points) for points in pareto.points.values()} == {len(INTERVALS)}
    assert pareto.marks["the default"] == pareto.points["hold, doubling"][INTERVALS.index(25)]
    assert any("calibrated at an interval of 25 tokens" in note for note in summary.notes)


def test_overhead_counts_every_check_but_the_one_that_costs_nothing() -> None:
    checks = tuple(CheckResult(depth, 0.0, 0.0) for depth in (0, 25, 50))
    outcome = Outcome("length", Verdict(False, 0.0, 0), checks, (), 50)
    assert Costs(step=0.1, check=0.05, tokens=99).overhead(outcome) == pytest.approx(2 * 0.05 / (50 * 0.1))


@pytest.mark.parametrize(
    ("scores", "depth", "before"),
    [
        ({0: 0.9, 5: 0.1, 10: 0.2, 12: 0.3}, None, 0),  # only depth 0 would halt
        ({0: 0.1, 5: 0.9, 10: 0.2, 12: 0.9}, 5, 0),
        ({0: 0.1, 5: 0.1, 10: 0.2, 12: 0.9}, 12, 10),
        ({0: 0.1, 5: 0.1, 10: None, 12: 0.9}, 10, 5),  # a failed check halts
        ({0: 0.1, 5: 0.9, 10: None, 12: 0.9}, 5, 0),
    ],
)
def test_checks_behind_depth_zero_stand_alone(
    tmp_path: Path, scores: dict[int, float | None], depth: int | None, before: int
) -> None:
    backend = tiny_backend()
    context = context_of(tmp_path, backend=backend, given_probe=random_probe(backend, policy=Threshold(0.7)))
    context.record("a", lambda: {"checks": list(scores.items())})
    answer = interval.StoredAnswer("harmful", Transcript("a", backend.template.prompt("w1"), (9,) * 12))
    held, sent = (interval._late(context, answer, (5, "even", release)) for release in interval.RELEASES)
    assert (held, sent) == (((False, 12),) * 2 if depth is None else ((True, before), (True, depth)))


def test_answers_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(context_of(tmp_path))
    monkeypatch.setattr("anydepth.evals.arms.replay.packed_scores", lambda *_: pytest.fail("read again"))
    monkeypatch.setattr(interval, "check_times", lambda *_: pytest.fail("timed again"))
    assert run(context_of(tmp_path)).record() == first.record()


def test_other_arms_are_not_measured_and_that_is_said(tmp_path: Path) -> None:
    summary = run(context_of(tmp_path, options={"arms": ("rethink",), "settings": {"interval.tokens": "20"}}))
    assert any("Only the arm probe is measured" in note for note in summary.notes)
