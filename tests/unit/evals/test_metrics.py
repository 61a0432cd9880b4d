"""Figures of records, with intervals that hold what they say."""

import numpy as np
import pytest

from anydepth.evals import estimates


def test_a_share_has_an_exact_interval_also_at_its_ends() -> None:
    figure = estimates.share("halted", [True] * 9, {"arm": "probe"}, judge="j")
    assert (figure.value, figure.answers, figure.judge, dict(figure.group)) == (1.0, 9, "j", {"arm": "probe"})
    assert figure.interval is not None and figure.interval[0] == pytest.approx(0.664, abs=1e-3)
    assert figure.interval[1] == 1.0
    assert estimates.share("halted", []).value is None


def test_a_statistic_lies_in_its_interval_and_is_the_same_each_time() -> None:
    values = np.random.default_rng(0).normal(5, 2, 60)
    for make in (estimates.average, estimates.median):
        figure = make("leak", values, "tokens")
        assert figure == make("leak", values, "tokens")
        assert figure.interval is not None and figure.value is not None
        assert figure.interval[0] < figure.value < figure.interval[1]
        assert 0.3 < figure.interval[1] - figure.interval[0] < 3
    assert estimates.median("leak", [], "tokens").value is None


def test_of_one_answer_the_interval_has_no_width() -> None:
    assert estimates.average("leak", [3.0], "tokens").interval == (3.0, 3.0)
    assert estimates.auroc("a", [0.9], [0.1, 0.95]).interval == (0.0, 1.0)


def test_rows_are_drawn_whole() -> None:
    rows = [[value, -value] for value in np.random.default_rng(2).normal(0, 1, 30)]
    figure = estimates.statistic("sum", rows, lambda one, other, axis: one.sum(axis) + other.sum(axis), "tokens")
    assert figure.answers == 30 and figure.value == pytest.approx(0) and figure.interval == pytest.approx((0, 0))


def test_the_interval_of_a_mean_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(100):
        low, high = estimates.average("x", rng.normal(0, 1, 50), "tokens").interval or (0, 0)
        held += low <= 0 <= high
    assert 87 <= held <= 100


def test_auroc_counts_pairs() -> None:
    assert estimates.auroc("a", [0.9, 0.8], [0.1, 0.85]).value == pytest.approx(0.75)
    assert estimates.auroc("a", [0.9], []).value is None


def test_a_difference_is_paired() -> None:
    before = np.arange(40.0)
    figure = estimates.difference("d", before + 1, before, "share")
    assert figure.value == pytest.approx(1) and figure.interval == (1.0, 1.0)
    with pytest.raises(ValueError):
        estimates.difference("d", [1, 2, 3], [1, 2], "share")


def test_a_roc_curve_goes_from_corner_to_corner() -> None:
    points = estimates.roc([0.9, 0.4], [0.5, 0.1])
    assert points == [(0.0, 0.0), (0.0, 0.5), (0.5, 0.5), (0.5, 1.0), (1.0, 1.0)]
    assert points == sorted(points)
