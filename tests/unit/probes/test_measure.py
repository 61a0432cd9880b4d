"""Measuring: answers are put together again from their checks, and the table has the figures that it says."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from anydepth.errors import ConfigError, StoreError
from anydepth.intervals import Rate, auroc
from anydepth.policy import Threshold
from anydepth.probes.fitting.calibrate import peak
from anydepth.probes.fitting.false_alarms import Direction, directions, halted_elsewhere, other_half, unused_note
from anydepth.probes.fitting.fit import FitOptions, Fitted, fit
from anydepth.probes.fitting.measure import (
    PREFILLS,
    halted_share,
    separation,
    separation_with_interval,
    table,
    thresholds,
    trails,
)
from anydepth.probes.fitting.operating import from_prefill, operating_point
from anydepth.probes.recipe.pairs import Pair, half, one_a_prompt
from anydepth.probes.states.store import Checks
from tests.planted import READS, WIDTH, planted

PAIR = Pair("p", ("v",), ("v",))


def scored(checks: Checks) -> np.ndarray:
    return fit(planted(80), FitOptions()).logits(checks.states)


def shuffled(checks: Checks) -> Checks:
    return checks.where(np.random.default_rng(1).permutation(len(checks)))


def test_trails_are_whole_answers_in_order_of_depth() -> None:
    checks = shuffled(planted(12, split="v"))
    found = trails(checks, checks["depth"].astype(float) / 10, ["v"])
    assert len(found) == 12 and {each.id for each in found} == {f"c{n}" for n in range(12)}
    for each in found:
        assert each.depths == (0, 4, 25, 50)
        assert each.scores == pytest.approx([1 / (1 + math.exp(-depth / 10)) for depth in each.depths])
        assert each.source == f"s{int(each.id[1:]) % 3}"


def test_trails_pick_splits_and_labels() -> None:
    one, other = planted(10, split="v"), planted(6, split="w")
    both = Checks(
        {name: np.concatenate([one[name], other[name]]) for name in one.columns},
        np.concatenate([one.states, other.states]),
    )
    logits = np.zeros(len(both))
    assert len(trails(both, logits, ["v", "w"])) == 16
    assert len(trails(both, logits, ["w"], "harmful")) == 3
    with pytest.raises(StoreError, match=r"no answers of x, y that are benign .* hold out answers to more prompts"):
        trails(both, logits, ["x", "y"], "benign")


def test_extreme_logits_give_scores() -> None:
    checks = planted(2, depths=(0, 5), split="v")
    found = trails(checks, np.array([-1e4, 1e4, -1e4, 1e4]), ["v"])
    assert [each.scores for each in found] == [(0.0, 1.0)] * 2


def test_separation_is_of_whole_answers() -> None:
    checks = planted(30, split="v")
    logits = scored(checks)
    value, interval = separation_with_interval(checks, logits, PAIR, Threshold())
    peaks = {
        label: [
            max(1 / (1 + np.exp(-logits[(checks["answer"] == key)])))
            for key in sorted(set(checks["answer"][checks["label"] == label]))
        ]
        for label in ("harmful", "benign")
    }
    assert value == pytest.approx(auroc(peaks["harmful"], peaks["benign"], seed=0)[0])
    assert interval.low <= value <= interval.high
    assert separation(checks, -logits, PAIR, Threshold()) < 0.2


def test_a_pair_is_read_from_a_recipe() -> None:
    assert Pair.of({"name": "p", "harmful": "v", "benign": ["v", "w"]}) == Pair("p", ("v",), ("v", "w"))
    with pytest.raises(ConfigError, match="a comparison has no 'benign'; give name, harmful and benign"):
        Pair.of({"name": "p", "harmful": "v"})
    with pytest.raises(ConfigError, match="a comparison is 'p'; write"):
        Pair.of("p")  # pyright: ignore[reportArgumentType]


def test_halves_share_nothing_and_make_the_whole() -> None:
    keys = planted(40)["prompt_key"].tolist()
    one, other = half(keys, 0), half(keys, 1)
    assert (one ^ other).all() and one.any() and other.any()
    assert not {key for key, mine in zip(keys, one, strict=True) if mine} & {
        key for key, mine in zip(keys, other, strict=True) if mine
    }


def test_of_answers_that_share_a_prompt_the_first_by_digest_is_taken() -> None:
    own, hosts = ["p", "p", "q", "r", "s"], ["p", "p", "q", "q", "t"]
    assert one_a_prompt(["b", "a", "c", "d", "e"], own, hosts).tolist() == [False, True, True, False, True]
    assert one_a_prompt([], [], []).tolist() == []


def test_halves_of_keys_that_are_no_digests() -> None:
    keys = ["group 1", "group 2", "Ä", "z", "y"]
    assert (half(keys, 0) ^ half(keys, 1)).all() and half(keys, 0).any() and half(keys, 1).any()


def test_a_pair_may_be_judged_from_a_depth_on() -> None:
    late = Pair.of({"name": "p", "harmful": "v", "benign": "v", "first_depth": 25})
    assert late == Pair("p", ("v",), ("v",), 25)
    for wrong in (-1, True, "25"):
        with pytest.raises(ConfigError, match="comparison 'p' has the first_depth"):
            Pair.of({"name": "p", "harmful": "v", "benign": "v", "first_depth": wrong})
    checks = planted(20, split="v")
    harmful = checks["label"] == "harmful"
    logits = np.where(checks["depth"] < 25, -5.0, 5.0) * np.where(harmful, 1, -1)
    logits[checks["depth"] == 0] = 9.0  # every answer is high at depth 0
    assert separation(checks, logits, PAIR, Threshold()) == 0.5
    assert separation(checks, logits, late, Threshold()) == 1.0
    found = trails(checks, logits, ["v"], "harmful", first_depth=25)
    assert {each.depths for each in found} == {(25, 50)}
    with pytest.raises(StoreError, match="no answers of v that are harmful and have checks from depth 51 on"):
        trails(checks, logits, ["v"], "harmful", first_depth=51)


def test_the_share_that_is_halted_is_at_a_threshold_of_the_benign_sets() -> None:
    checks = planted(40, depths=(0, 25), split="v")
    harmful = checks["label"] == "harmful"
    number = np.array([int(each[1:]) for each in checks["id"]])
    logits = np.where(checks["depth"] == 25, number / 10, 0.0)  # every answer scores by its number
    share = halted_share(checks, logits, PAIR, Threshold(), benign=("v",), target=0.1)
    # two of the twenty benign answers (38 and 36) may halt: the harmful ones above number 34 do
    assert share == 3 / 20
    tied = np.where(harmful, 1.0, 2.0)
    assert halted_share(checks, tied, PAIR, Threshold(), benign=("v",), target=0.1) == 0
    sure = np.full(len(checks), 1e4)
    assert halted_share(checks, sure, PAIR, Threshold(), benign=("v",), target=0.1) == 0, "scores of 1 leave none"
    late = replace(PAIR, first_depth=25)
    high = np.where(checks["depth"] == 0, 9.0, np.where(harmful, 1.0, -1.0))
    assert halted_share(checks, high, PAIR, Threshold(), benign=("v",), target=0.1) == 0
    assert halted_share(checks, high, late, Threshold(), benign=("v",), target=0.1) == 1


def spliced(scores: dict[int, float], begins: int = 25, *, length: int = 50) -> tuple[Checks, np.ndarray]:
    """40 answers with these scores by depth; the harmful ones are harmful from `begins` on, the others score 0.5."""
    checks = planted(40, depths=tuple(scores), split="v")
    harmful = checks["label"] == "harmful"
    more = {"harm_begins": np.where(harmful, begins, -1), "length": np.full(len(checks), length)}
    values = np.array([scores[depth] for depth in checks["depth"].tolist()])
    chosen = np.where(harmful, values, 0.5)
    return replace(checks, columns={**checks.columns, **more}), np.log(chosen / (1 - chosen))


def test_what_a_spliced_answer_scores_before_its_stretch_is_no_evidence() -> None:
    checks, logits = spliced({0: 0.9, 25: 0.9, 50: 0.1})
    assert separation(checks, logits, PAIR, Threshold()) == 0
    assert halted_share(checks, logits, PAIR, Threshold(), benign=("v",), target=0.1) == 0
    later, high = spliced({0: 0.1, 25: 0.1, 50: 0.9})
    assert separation(later, high, PAIR, Threshold(), forced=True) == 1
    assert halted_share(later, high, PAIR, Threshold(), benign=("v",), target=0.1) == 1
    both, twice = spliced({0: 0.9, 25: 0.1, 50: 0.9})
    assert separation(both, twice, PAIR, Threshold()) == 1
    assert halted_share(both, twice, PAIR, Threshold(), benign=("v",), target=0.1) == 0, "the guard halts before"


def test_a_halt_before_the_stretch_is_reported_as_early() -> None:
    found = trails(*spliced({0: 0.9, 25: 0.1, 50: 0.9}), ["v"], "harmful")
    assert {each.harm_begins for each in found} == {25}
    record = operating_point(Threshold(0.8), found).record()
    assert (record["halted"], record["answers"], record["halted_early"]["halted"]) == (0, 20, 20)
    late = trails(*spliced({0: 0.1, 25: 0.1, 50: 0.9}), ["v"], "harmful")
    record = operating_point(Threshold(0.8), late).record()
    assert (record["halted"], record["halted_early"]["halted"]) == (20, 0)
    assert [point.at_once.halted for point in from_prefill(Threshold(0.8), late, (25, None))] == [0, 20]
    assert [point.halted.halted for point in from_prefill(Threshold(0.8), found, (25, None))] == [0, 0]


def test_a_harmful_answer_that_was_not_read_up_to_its_stretch_is_left_out() -> None:
    checks, logits = spliced({0: 0.9, 25: 0.9, 50: 0.9}, begins=50)
    with pytest.raises(StoreError, match="no answers of v that are harmful"):
        trails(checks, logits, ["v"], "harmful")
    assert len(trails(checks, logits, ["v"], "benign")) == 20


def in_halves(checks: Checks) -> list[Checks]:
    in_first = half(checks["prompt_key"].tolist(), 0)
    return [checks.where(in_first), checks.where(~in_first)]


def test_false_positives_are_of_thresholds_set_on_the_other_half() -> None:
    fitted = fit(planted(80), FitOptions())
    checks = planted(80, gap=0.5, split="v")
    halves = in_halves(checks)
    whole = thresholds(checks, fitted.logits(checks.states), Threshold(), ["v"], target=0.1, data="d")
    found = halted_elsewhere(directions(halves, fitted, whole, ["v"]), ["v"])
    halted = 0
    for one, other in (halves, halves[::-1]):
        policy = thresholds(one, fitted.logits(one.states), Threshold(), ["v"], target=0.1, data="d").policy
        answers = trails(other, fitted.logits(other.states), ["v"], "benign")
        halted += sum(peak(policy, each) >= policy.threshold for each in answers)
    assert (found.answers, found.halted) == (40, halted)


def test_a_guaranteed_threshold_is_measured_as_it_is_on_the_half_it_was_not_set_on() -> None:
    fitted = fit(planted(80), FitOptions())
    checks = planted(160, gap=0.5, split="v")
    chosen, reported = in_halves(checks)
    logits = fitted.logits(reported.states)
    sure = thresholds(reported, logits, Threshold(), ["v"], target=0.2, guarantee=True, data="d")
    found = directions([chosen, reported], fitted, sure, ["v"])
    assert len(found) == 1 and found[0].policy == sure.policy
    answers = trails(chosen, fitted.logits(chosen.states), ["v"], "benign")
    halted = sum(peak(sure.policy, each) >= sure.policy.threshold for each in answers)
    rate = halted_elsewhere(found, ["v"])
    assert (rate.answers, rate.halted) == (len(answers), halted)
    record = other_half(found, ["v"], sure)
    assert record["contract"] == "guarantee" and record["other_half"] == rate.record()


def test_a_target_that_is_left_unused_is_said() -> None:
    assert unused_note(Rate.of(5, 1000), 0.01) is None
    assert unused_note(Rate.of(4, 1000), 0.01) == (
        "on prompts that the threshold was not set on, 0.4 % of the benign answers is halted, which leaves more than "
        "half of the target of 1 % unused: a lower threshold would halt more harmful answers"
    )
    fitted = fit(planted(80), FitOptions())
    checks = planted(40, split="v")
    whole = thresholds(checks, fitted.logits(checks.states), Threshold(), ["v"], target=0.01, data="d")
    record = other_half([Direction(Threshold(1.0), checks, fitted.logits(checks.states))], ["v"], whole)
    assert record["contract"] == "rate" and record["other_half"]["halted"] == 0
    assert record["note"].startswith(f"{whole.note}. On prompts that the threshold was not set on, 0 % of")


def test_thresholds_are_set_on_benign_answers() -> None:
    checks = planted(80, split="v")
    logits = scored(checks)
    found = thresholds(checks, logits, Threshold(), ["v"], target=0.1, data="made up")
    assert (found.answers, found.target, found.data) == (40, 0.1, "made up")
    assert found.halted == 4 and found.achieved == 0.1


def test_the_table_has_every_figure_with_its_interval() -> None:
    checks = planted(60, depths=(0, 25, 50, 100, 150), split="v")
    fitted = fit(planted(80), FitOptions())
    calibrated = thresholds(checks, fitted.logits(checks.states), Threshold(), ["v"], target=0.1, data="d").policy
    found = table(checks, fitted, [PAIR, replace(PAIR, name="q")], calibrated)
    assert set(found) == {"separation", "halted", "prefill"}
    assert list(found["separation"]) == ["p", "q"]
    for figure in found["separation"].values():
        low, high = figure["interval"]
        assert 0.9 < low <= figure["auroc"] <= high <= 1
    halted = found["halted"]["v"]
    assert halted["answers"] == 30 and halted["rate"] > 0.8
    points = found["prefill"]["v"]
    assert [point["depth"] for point in points] == ["end" if depth is None else depth for depth in PREFILLS]
    counts = [point["halted"]["answers"] for point in points]
    assert counts == [30, 30, 0, 0, 30], "answers that end before a depth are not counted there"
    assert points[2]["halted"]["rate"] is None
    assert all(late["at_once"]["rate"] is not None for late in (points[0], points[1], points[4]))


def test_logits_do_not_depend_on_how_many_are_asked_for_at_once() -> None:
    rng = np.random.default_rng(0)
    fitted = Fitted(rng.standard_normal((READS, WIDTH)), 0.3, 1)
    states = rng.standard_normal((9001, READS, WIDTH)).astype(np.float32)
    whole = fitted.logits(states)
    assert whole.shape == (9001,)
    for begin, end in pairwise((0, 1, 4096, 4097, 9001)):
        assert np.allclose(fitted.logits(states[begin:end]), whole[begin:end], rtol=0, atol=1e-12)
    assert fitted.logits(states[:0]).shape == (0,)
