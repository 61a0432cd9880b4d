"""Policies: from the scores of one answer to one statistic, and what they refuse."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anydepth.errors import ConfigError
from anydepth.policy import POLICIES, Cusum, Ewma, KofN, Policy, Threshold, policy_from, policy_record, statistic_at
from tests.unit.test_flow import policies

unit = st.floats(0, 1)
sequences = st.lists(unit, max_size=40)


@given(policies, sequences)
def test_one_finite_statistic_a_score(policy: Policy, scores: list[float]) -> None:
    statistics = policy.statistic(scores)
    assert len(statistics) == len(scores)
    assert all(math.isfinite(value) and value >= 0 for value in statistics)


@given(policies, sequences, sequences)
def test_later_scores_do_not_change_earlier_statistics(policy: Policy, scores: list[float], more: list[float]) -> None:
    assert policy.statistic(scores + more)[: len(scores)] == policy.statistic(scores)


@given(policies, st.lists(st.tuples(unit, unit), max_size=30))
def test_higher_scores_never_lower_the_statistic(policy: Policy, pairs: list[tuple[float, float]]) -> None:
    lower, higher = ([pick(pair) for pair in pairs] for pick in (min, max))
    pairs_of_statistics = zip(policy.statistic(lower), policy.statistic(higher), strict=True)
    assert all(low <= high + 1e-12 for low, high in pairs_of_statistics)


@given(sequences)
def test_what_reduces_to_the_threshold(scores: list[float]) -> None:
    assert Threshold().statistic(scores) == scores
    assert KofN(1, 1).statistic(scores) == scores
    assert Ewma(1.0).statistic(scores) == scores


@given(st.integers(1, 4), st.integers(0, 4), unit, sequences)
def test_k_of_n_counts(k: int, more: int, threshold: float, scores: list[float]) -> None:
    policy = KofN(k, k + more, threshold)
    for end, value in enumerate(policy.statistic(scores), 1):
        last = scores[max(0, end - policy.n) : end]
        counted = sum(score >= threshold for score in last)
        if threshold > 0:  # with a threshold of 0 everything halts, also fewer than k scores
            assert (value >= threshold) == (counted >= k)


@given(st.floats(0.01, 1), sequences)
def test_ewma_lies_between_the_scores_so_far(alpha: float, scores: list[float]) -> None:
    for end, value in enumerate(Ewma(alpha).statistic(scores), 1):
        assert min(scores[:end]) - 1e-12 <= value <= max(scores[:end]) + 1e-12


@given(st.floats(0, 0.99), sequences)
def test_cusum_is_the_largest_sum_of_a_run_that_ends_here(drift: float, scores: list[float]) -> None:
    for end, value in enumerate(Cusum(drift).statistic(scores), 1):
        runs = [sum(scores[start:end]) - drift * (end - start) for start in range(end)]
        assert value == pytest.approx(max(0.0, *runs), abs=1e-9)


@pytest.mark.parametrize(
    ("policy", "statistic"),
    [
        (KofN(2, 3), [0.0, 0.5, 0.5, 0.25, 0.75]),
        (Ewma(0.5), [0.75, 0.625, 0.4375, 0.34375, 0.671875]),
        (Cusum(0.5), [0.25, 0.25, 0.0, 0.0, 0.5]),
    ],
)
def test_by_hand(policy: Policy, statistic: list[float]) -> None:
    scores = [0.75, 0.5, 0.25, 0.25, 1.0]
    if isinstance(policy, KofN):
        scores = [0.75, 0.5, 0.25, 0.0, 1.0]
        statistic = [0.0, 0.5, 0.5, 0.25, 0.25]
    assert policy.statistic(scores) == statistic


@given(policies)
def test_a_record_gives_the_policy_back(policy: Any) -> None:
    record = json.loads(json.dumps(policy_record(policy)))
    assert policy_from(record) == policy
    assert POLICIES[record["name"]] is type(policy)


def test_a_record_may_leave_options_out_and_is_not_changed() -> None:
    record = {"name": "ewma", "alpha": 0.25}
    assert policy_from(record) == Ewma(0.25, 0.5)
    assert record == {"name": "ewma", "alpha": 0.25}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, r"policy is None; choose one of threshold, k_of_n, ewma, cusum"),
        ({"name": "median"}, "policy is 'median'"),
        ({"name": "threshold", "thresold": 0.5}, r"'threshold' does not take .*thresold"),
        ({"name": "threshold", "threshold": 2}, "threshold is 2"),
        ({"name": "threshold", "threshold": "0.5"}, "threshold"),
        ({"name": "k_of_n", "k": 2.0}, "k is 2.0"),
    ],
)
def test_a_bad_record_is_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        policy_from(record)


def test_a_policy_without_a_name_cannot_be_stored() -> None:
    class Own:
        threshold = 1.0

        def statistic(self, scores: Any) -> list[float]:
            return list(scores)

    with pytest.raises(ConfigError, match="Own has no name"):
        policy_record(Own())


BAD = [
    *[(kind, "threshold", value) for kind in (Threshold, KofN, Ewma) for value in (-0.01, 1.01, math.nan, math.inf)],
    *[(Cusum, "threshold", value) for value in (0, -1, math.nan, math.inf)],
    *[(Cusum, "drift", value) for value in (-0.1, 1, math.nan)],
    *[(Ewma, "alpha", value) for value in (0, -0.5, 1.5, math.nan)],
    *[(KofN, "k", value) for value in (0, -1, 1.5, "2", math.nan)],
    *[(KofN, "n", value) for value in (1, 0, 3.5, "3", None)],
]


@pytest.mark.parametrize(("kind", "name", "value"), BAD)
def test_bad_options_are_refused_by_name(kind: Any, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is {value!r}; it must be"):
        kind(**{name: value})


@pytest.mark.parametrize("name", POLICIES)
def test_the_score_at_depth_0_is_judged_by_itself(name: str) -> None:
    plain = policy_from({"name": name})
    apart = policy_from({"name": name, "request": 0.5})
    scores = [0.8, 0.1, 0.9, 0.7]
    assert apart.statistic(scores) == [0.4, *plain.statistic(scores[1:])]
    assert apart.statistic([]) == []
    assert policy_record(apart)["request"] == 0.5
    assert "request" not in policy_record(plain)


def test_without_a_check_at_depth_0_no_score_is_weighted() -> None:
    policy = Ewma(0.5, request=0.5)
    assert statistic_at(policy, [0, 25, 50], [0.8, 0.4, 0.8]) == pytest.approx([0.4, 0.4, 0.6])
    assert statistic_at(policy, [25, 50], [0.4, 0.8]) == pytest.approx([0.4, 0.6])
    assert statistic_at(policy, [], []) == []


@pytest.mark.parametrize("value", [0, -0.1, 1.5, math.nan, "much"])
def test_a_wrong_weight_of_the_request_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"request is .*in \(0, 1\]"):
        policy_from({"name": "ewma", "request": value})
