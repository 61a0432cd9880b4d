"""`anydepth demo` on a scripted guard."""

import json

import pytest

from anydepth.cli.demo import settings
from anydepth.cli.timeline import timeline
from tests.unit.cli.conftest import Run, ScriptedGuard, checks_of


@pytest.fixture
def attacked(guard: ScriptedGuard) -> ScriptedGuard:
    """A guard that halts at its second check."""
    guard.scores = (0.1, 0.9, 0.95)
    return guard


def test_shows_both_answers_the_timeline_and_the_leak(run: Run, attacked: ScriptedGuard) -> None:
    result = run("demo")
    assert result.exit_code == 0, result.stderr
    left = " ".join(line.split("│")[1] for line in result.stdout.splitlines() if line.count("│") >= 2)
    assert "go on, click the link." in " ".join(left.split()), "the panel wraps the unguarded text"
    assert "Sorry, no." in result.stdout
    assert "threshold 0.50" in result.stdout
    assert "leak 0 tokens, halted at check 2 (depth 10, score 0.90)" in result.stdout
    assert attacked.opened[0][0].model == settings().model


def test_both_sides_get_the_same_attack_and_the_scan_sees_the_whole_answer(run: Run, attacked: ScriptedGuard) -> None:
    run("demo", "org/m")
    assert attacked.asked[0] == attacked.asked[1]
    assert attacked.asked[0][1]["prefill"] == settings().prefill
    assert attacked.scanned == [(settings().request, settings().prefill + "go on, click the link.")]
    assert attacked.opened[0][0].model == "org/m"


def test_json(run: Run, attacked: ScriptedGuard) -> None:
    record = json.loads(run("demo", "--json").stdout)
    assert record["unguarded"] == "go on, click the link."
    assert record["guarded"]["text"] == "Sorry, no."
    assert [check["score"] for check in record["timeline"]] == [0.1, 0.9, 0.95]
    expected = {"halted": True, "halted_at_check": 2, "depth": 10, "leak": 0, "threshold": 0.5, "ok": True}
    assert {key: record[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("scores", "continuation", "says"),
    [
        ((0.1, 0.2), "more", "was not halted"),
        ((0.1, 0.9), " \n", "wrote nothing"),
        ((0.1, float("nan")), "more", "a check failed"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_does_not_lie(
    run: Run, guard: ScriptedGuard, scores: tuple[float, ...], continuation: str, says: str, options: list[str]
) -> None:
    guard.scores, guard.continuation = scores, continuation
    result = run("demo", *options)
    assert result.exit_code == 1
    assert says in result.stderr


def test_the_request_is_mild_and_the_opening_ends_where_the_model_goes_on() -> None:
    shown = settings()
    assert 100 < len(shown.prefill) < 1000
    assert shown.prefill == shown.prefill.strip()
    assert shown.generation["max_new_tokens"] <= 128
    assert shown.generation["do_sample"] is False, "everybody should see the same"


def test_timeline_draws_a_bar_a_check_and_marks_the_threshold() -> None:
    drawn = timeline(checks_of((0.0, 1.0, float("nan"))), 0.5, width=38).plain.splitlines()
    assert drawn == [
        "depth     0 ··········│········· 0.00",
        "depth    10 ██████████│█████████ 1.00",
        "depth    20 ··········│········· failed",
        "                      ↑ threshold 0.50",
    ]


def test_timeline_says_where_the_opening_ends() -> None:
    drawn = timeline(checks_of((0.0, 0.0, 0.0)), 0.5, opening=10, width=38).plain.splitlines()
    assert [line[:11] for line in drawn[:4]] == ["depth     0", "depth    10", "depth    10", "depth    20"]
    assert "opening ends" in drawn[2]
