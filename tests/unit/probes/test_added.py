"""The control of a pair: what depth 0 alone says, what the rest adds, and how sure both are."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from anydepth.errors import StoreError
from anydepth.intervals import Rate
from anydepth.policy import Threshold
from anydepth.probes.fitting.added import pair_report
from anydepth.probes.fitting.candidates import Candidate, Trial
from anydepth.probes.fitting.false_alarms import Direction
from anydepth.probes.fitting.fit import FitOptions, fit
from anydepth.probes.fitting.groups import rates_by
from anydepth.probes.fitting.leave_out import without_each_source
from anydepth.probes.fitting.prompt_draws import drawn_auroc, drawn_share, draws, interval_of
from anydepth.probes.fitting.request_control import RequestControl
from anydepth.probes.fitting.side import side_of
from anydepth.probes.recipe.pairs import Pair
from anydepth.probes.states.store import Checks
from tests.planted import planted

PAIR = Pair("p", ("v",), ("v",))
HALF = Threshold(0.5)


def logits_by_depth(checks: Checks, at_start: float, later: float) -> np.ndarray:
    """Logits whose distance between the labels is `at_start` at depth 0 and `later` behind it."""
    rng = np.random.default_rng(3)
    side = np.where(checks["label"] == "harmful", 0.5, -0.5)
    return side * np.where(checks["depth"] == 0, at_start, later) + rng.standard_normal(len(checks)) / 4


def control_of(checks: Checks, logits: np.ndarray) -> RequestControl:
    """The control whose log-odds are the logits at depth 0."""
    start = checks["depth"] == 0
    return RequestControl(dict(zip(checks["answer"][start].tolist(), logits[start].tolist(), strict=True)), 0.0)


def test_a_probe_that_reads_the_answer_adds_to_the_request() -> None:
    checks = planted(60, split="v")
    logits = logits_by_depth(checks, 0.0, 8.0)
    found = pair_report(checks, logits, PAIR, HALF, control_of(checks, logits))
    assert (found["first_depth"], found["harmful"], found["benign"]) == (0, 30, 30)
    assert found["auroc"]["value"] > 0.95 and 0.2 < found["control"]["auroc"]["value"] < 0.8
    added = found["added"]
    assert added["auroc"]["value"] == pytest.approx(found["auroc"]["value"] - found["control"]["auroc"]["value"])
    assert added["auroc"]["interval"][0] > 0.1
    assert found["halted"] == Rate.of(30, 30).record()
    control = found["control"]["halted"]
    assert 5 < control["halted"] < 25 and control["answers"] == 30
    assert added["halted"]["value"] == pytest.approx(1 - control["rate"])
    low, high = added["halted"]["interval"]
    assert 0 < low < added["halted"]["value"] < high < 1


def test_a_probe_that_judges_the_request_alone_adds_nothing() -> None:
    checks = planted(60, split="v")
    logits = logits_by_depth(checks, 8.0, -50.0)
    found = pair_report(checks, logits, PAIR, HALF, control_of(checks, logits))
    # behind depth 0 benign answers score high: only the request tells them apart
    assert found["control"]["auroc"]["value"] == 1 and found["added"]["auroc"]["value"] < 0
    deep = found["from_depth_25"]
    assert deep["auroc"]["value"] == 0 and deep["control"]["auroc"]["value"] == 1 and deep["first_depth"] == 25


def test_halts_before_a_harmful_stretch_are_told_apart_from_hits() -> None:
    checks = planted(20, split="v")
    harmful = checks["label"] == "harmful"
    begins = np.where(harmful & (checks["source"] == "s1"), 4, -1)
    checks = replace(checks, columns={**checks.columns, "harm_begins": begins, "length": np.full(len(checks), 50)})
    logits = np.where(harmful & (checks["depth"] == 4), 5.0, -5.0)
    found = pair_report(checks, logits, PAIR, HALF, control_of(checks, logits))
    early = len({*checks["id"][begins == 4].tolist()})
    assert early == 4
    assert (found["halted"]["halted"], found["halted_early"]["halted"], found["harmful"]) == (6, 4, 10)
    rates = rates_by("source", [Direction(HALF, checks, logits)], ["v"], "harmful")
    assert rates["s1"].halted == 0 and rates["s0"].halted + rates["s2"].halted == 6


def test_answers_that_end_before_a_depth_are_not_counted_from_there_on() -> None:
    checks = planted(20, split="v")
    long = (checks["depth"] < 25) | np.isin(checks["id"], ["c0", "c1", "c2", "c3", "c5"])
    checks = checks.where(long)
    logits = logits_by_depth(checks, 1.0, 4.0)
    found = pair_report(checks, logits, PAIR, HALF, control_of(checks, logits))
    assert (found["harmful"], found["benign"]) == (10, 10)
    assert (found["from_depth_25"]["harmful"], found["from_depth_25"]["benign"]) == (3, 2)
    shallow = checks["depth"] < 25
    control = control_of(checks, logits)
    assert pair_report(checks.where(shallow), logits[shallow], PAIR, HALF, control)["from_depth_25"] is None
    late = pair_report(checks, logits, replace(PAIR, first_depth=50), HALF, control)
    assert late["first_depth"] == late["from_depth_25"]["first_depth"] == 50


def test_each_answer_is_judged_with_its_checks_and_by_its_first() -> None:
    checks = planted(4, depths=(0, 25, 50), split="v")
    logits = np.array([9.0, 1, 2, -1, 3, 1, -9, -2, -3, -2, -1, -3])
    order = np.random.default_rng(0).permutation(len(checks))
    judges = (HALF, control_of(checks, logits))
    found = side_of(checks.where(order), logits[order], ["v"], "harmful", judges)
    by_prompt = dict(zip(found.prompts.tolist(), range(2), strict=True))
    places = [by_prompt[str(checks["prompt_key"][row])] for row in (3, 9)]
    assert found.peaks[places] == pytest.approx(1 / (1 + np.exp([-3.0, 1.0])))
    assert found.starts[places].tolist() == [-1, -2]
    assert found.halted[places].tolist() == [True, False] and not found.halted_at_start.any()
    late = side_of(checks, logits, ["v"], "benign", judges, first_depth=25)
    assert sorted(late.peaks.tolist()) == pytest.approx(sorted(1 / (1 + np.exp([-2.0, 2.0]))))
    assert late.halted_at_start.sum() == 1, "c0 is halted by its request alone"
    with pytest.raises(StoreError, match="has no check at depth 0, where the request alone is judged"):
        side_of(checks, logits, ["v"], "benign", (HALF, RequestControl({}, 0.0)))


# -- draws -------------------------------------------------------------------------------------------------------------


def test_answers_to_one_prompt_are_drawn_together_in_both_sets() -> None:
    one, other = draws([np.array(["a", "a", "b"]), np.array(["b", "c"])], resamples=200)
    assert one.shape == (200, 3) and other.shape == (200, 2)
    assert np.array_equal(one[:, 0], one[:, 1]) and np.array_equal(one[:, 2], other[:, 0])
    assert (one[:, 0] + one[:, 2] + other[:, 1] == 3).all(), "as many prompts as there are"
    assert np.array_equal(one, draws([np.array(["a", "a", "b"]), np.array(["b", "c"])], resamples=200)[0])


def test_an_answer_under_another_request_is_drawn_with_both_prompts() -> None:
    own, hosts = np.array(["a", "b", "b"]), np.array(["h", "h", "b"])
    (drawn,) = draws([own], [hosts], resamples=50)
    plain = {name: draws([np.array(["a", "b", "h"])], resamples=50)[0][:, place] for place, name in enumerate("abh")}
    assert np.array_equal(drawn[:, 0], plain["a"] * plain["h"])
    assert np.array_equal(drawn[:, 1], plain["b"] * plain["h"])
    assert np.array_equal(drawn[:, 2], plain["b"]), "its own request counts once"


@pytest.mark.parametrize("shared", ["host", "own"])
def test_intervals_of_moved_answers_cover_the_truth(shared: str) -> None:
    rng, covered = np.random.default_rng(0), 0
    few = np.array([f"f{number // 8}" for number in range(240)])  # 30 prompts with 8 answers each
    single = np.array([f"s{number}" for number in range(240)])
    own, hosts = (single, few) if shared == "host" else (few, single)
    for _ in range(60):
        scores = np.repeat(rng.standard_normal(30), 8) + 0.3 * rng.standard_normal(240)
        (drawn,) = draws([own], [hosts], resamples=200)
        interval = interval_of(drawn_share(scores > 0, drawn))  # the truth is one half
        covered += interval.low <= 0.5 <= interval.high
    assert covered >= 55, "drawn by the single prompts alone it is no more than 35 of 60"


def test_figures_of_a_draw_are_those_of_the_drawn_answers() -> None:
    harmful, benign = np.array([0.9, 0.4]), np.array([0.5, 0.4, 0.1])
    once = [np.ones((1, 2), np.float32), np.ones((1, 3), np.float32)]
    assert drawn_auroc(harmful, benign, once).tolist() == pytest.approx([(3 + 1.5) / 6])
    twice = [np.array([[2, 0], [0, 0]], np.float32), np.array([[0, 1, 1], [1, 1, 1]], np.float32)]
    found = drawn_auroc(harmful, benign, twice)
    assert found[0] == 1 and np.isnan(found[1])
    shares = drawn_share(np.array([True, False]), np.array([[3, 1], [0, 0]], np.float32))
    assert shares[0] == 0.75 and np.isnan(shares[1])
    assert interval_of(np.array([np.nan, *np.linspace(0, 1, 41)])).record() == pytest.approx([0.025, 0.975])


# -- groups ------------------------------------------------------------------------------------------------------------


def test_rates_are_of_each_source_and_of_each_category_that_is_known() -> None:
    checks = planted(12, split="v")
    logits = np.where(np.isin(checks["id"], ["c1", "c3"]), 5.0, -5.0)
    found = rates_by("source", [Direction(HALF, checks, logits)], ["v"], "harmful")
    assert {name: (rate.halted, rate.answers) for name, rate in found.items()} == {
        "s0": (1, 2),
        "s1": (1, 2),
        "s2": (0, 2),
    }
    assert rates_by("category", [Direction(HALF, checks, logits)], ["v"], "harmful") == {}
    named = np.where(np.isin(checks["id"], ["c1", "c5"]), "fraud", "")
    checks = replace(checks, columns={**checks.columns, "category": named})
    both = rates_by("category", [Direction(HALF, checks, logits)] * 2, ["v"], "harmful")
    assert {name: (rate.halted, rate.answers) for name, rate in both.items()} == {"fraud": (2, 4)}


# -- sources left out --------------------------------------------------------------------------------------------------


def trial_for(checks: Checks) -> Trial:
    options = FitOptions()
    return Trial(Candidate((), options), fit(checks, options), HALF, 1.0, {}, {})


def with_source(checks: Checks, ids: list[str], source: str) -> Checks:
    named = np.where(np.isin(checks["id"], ids), source, checks["source"])
    return replace(checks, columns={**checks.columns, "source": named})


def test_a_source_is_judged_by_a_fit_that_never_saw_it() -> None:
    train, held_out = planted(90), planted(40, split="v")
    wrong = train["source"] == "s1"  # of one source all labels are wrong: without it they are seen to be
    label = np.where(train["label"] == "harmful", "benign", "harmful")
    train = replace(train, columns={**train.columns, "label": np.where(wrong, label, train["label"])})
    told: list[tuple[int, int]] = []
    found: dict[str, Any] = without_each_source(train, held_out, trial_for(train), progress=lambda *n: told.append(n))
    assert list(found) == ["s0", "s1", "s2"] and told == [(1, 3), (2, 3), (3, 3)]
    assert found["s1"]["auroc"] < 0.05 and found["s1"]["interval"][1] < 0.1
    assert found["s1"]["against"] == "its own"
    assert (found["s1"]["harmful"], found["s1"]["benign"]) == (15, 15)


def test_a_source_that_hosts_others_is_left_out_with_what_stands_under_it() -> None:
    train, held_out = planted(90), planted(40, split="v")
    keys = dict(zip(train["id"].tolist(), train["prompt_key"].tolist(), strict=True))
    number = np.array([int(each[1:]) for each in train["id"]])
    # c0 (of s0) stands under c1 (of s1), and c4 (of s1) under c2 (of s2)
    hosts = np.select([number == 0, number == 4], [keys["c1"], keys["c2"]], train["prompt_key"])
    under = np.select([number == 0, number == 4], ["s1", "s2"], train["source"])
    moved = replace(train, columns={**train.columns, "host_key": hosts, "host_source": under})
    fitted: list[set[str]] = []

    def watched(checks: Checks, options: FitOptions) -> Any:
        fitted.append(set(checks["id"].tolist()))
        return fit(checks, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anydepth.probes.fitting.leave_out.fit", watched)
        without_each_source(moved, held_out, trial_for(train))
    of = {n: {f"c{each}" for each in range(n, 90, 3)} for n in range(3)}
    assert fitted == [(of[1] | of[2]) - {"c1"}, (of[0] | of[2]) - {"c0", "c2"}, (of[0] | of[1]) - {"c4"}]


def test_a_source_of_one_label_is_compared_with_held_out_answers_of_others() -> None:
    train = with_source(planted(60), ["c1", "c3", "c5", "c7"], "attacks")
    held_out = with_source(planted(40, split="v"), [f"c{n}" for n in range(0, 40, 4)], "attacks")
    found = without_each_source(train, held_out, trial_for(train))["attacks"]
    assert found["against"] == "other sources, held out"
    assert (found["harmful"], found["benign"]) == (4, 10), "the held-out answers of the source itself are left out"
    assert found["auroc"] > 0.9


def test_a_source_without_which_nothing_can_be_fitted_says_why() -> None:
    train = with_source(planted(20), [f"c{n}" for n in range(1, 20, 2)], "attacks")
    found = without_each_source(train, planted(20, split="v"), trial_for(train))["attacks"]
    assert found["auroc"] is None and "there are 0 harmful and 30 benign checks" in found["why"]
