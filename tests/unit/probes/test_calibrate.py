"""Calibration: what the threshold does to the answers it was set on, exact intervals, and rates on harmful answers."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anydepth.backends.protocol import ModelIdentity, Read, Site
from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.errors import ConfigError
from anydepth.flow import Check, Decode, Outcome, Plan, guarded
from anydepth.intervals import Interval, answers_needed, auroc, clopper_pearson, upper_bound
from anydepth.policy import Cusum, Ewma, KofN, Policy, Threshold, policy_record
from anydepth.probes.fitting.calibrate import Trail, calibrate, first_halt, peak, recalibrated, threshold_note
from anydepth.probes.fitting.contract import allowed_halts, guaranteed_halts
from anydepth.probes.fitting.operating import from_prefill, operating_point
from anydepth.schedule import Listed
from anydepth.types import Decoded, Score
from tests.unit.test_flow import policies

unit = st.floats(0, 1)
usual = st.floats(0, 0.99)  # a score of exactly 1 may leave no threshold
score_lists = st.lists(usual | st.sampled_from([0.0, 0.25, 0.5]), min_size=1, max_size=12)


def trail(*scores: float, key: object = "a", source: str = "s", step: int = 25) -> Trail:
    return Trail(str(key), source, tuple(range(0, step * len(scores), step)), scores)


def trails(*peaks: float, source: str = "s") -> list[Trail]:
    return [trail(0.0, value, 0.0, key=number, source=source) for number, value in enumerate(peaks)]


def halts(policy: Policy, answers: Sequence[Trail]) -> int:
    return sum(first_halt(policy, each.depths, each.scores) is not None for each in answers)


# -- intervals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # R: binom.test(x, n)$conf.int
        (0, 10, 0.0, 0.3084971),
        (1, 10, 0.002528579, 0.4450161),
        (5, 10, 0.1870860, 0.8129140),
        (10, 10, 0.6915029, 1.0),
        (3, 600, 0.001032268, 0.01454257),
    ],
)
def test_clopper_pearson_is_the_published_one(successes: int, trials: int, low: float, high: float) -> None:
    found = clopper_pearson(successes, trials)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-4, abs=1e-9)


@given(st.integers(1, 60), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_its_ends_are_the_rates_at_which_the_tails_are_exactly_that_rare(n: int, data: Any, confidence: float) -> None:
    k = data.draw(st.integers(0, n))
    found = clopper_pearson(k, n, confidence)
    tail = (1 - confidence) / 2
    assert 0 <= found.low <= k / n <= found.high <= 1
    if k > 0:
        assert sum(binomial(n, i, found.low) for i in range(k, n + 1)) == pytest.approx(tail, rel=1e-6)
    if k < n:
        assert sum(binomial(n, i, found.high) for i in range(k + 1)) == pytest.approx(tail, rel=1e-6)


def binomial(n: int, k: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def test_intervals_of_nothing_and_of_nonsense() -> None:
    assert clopper_pearson(0, 0) == Interval(0, 1)
    assert upper_bound(0, 0) == 1
    for wrong in ((3, 2, 0.95), (-1, 2, 0.95), (1, 2, 0), (1, 2, 1.0), (1, 2, math.nan)):
        with pytest.raises(ConfigError):
            clopper_pearson(*wrong)


@given(st.floats(1e-4, 0.9), st.floats(0.5, 0.999))
def test_answers_needed_is_the_smallest_number(target: float, confidence: float) -> None:
    needed = answers_needed(target, confidence)
    assert upper_bound(0, needed, confidence) <= target
    assert needed == 1 or upper_bound(0, needed - 1, confidence) > target


def test_answers_needed_for_half_a_percent() -> None:
    assert answers_needed(0.005) == 598


scores_of_a_class = st.lists(st.integers(0, 5), min_size=1, max_size=12)


@given(scores_of_a_class, scores_of_a_class)
def test_auroc_counts_the_pairs(harmful: list[int], benign: list[int]) -> None:
    value, interval = auroc(harmful, benign, seed=0, resamples=20)
    pairs = [1.0 if h > b else 0.5 if h == b else 0.0 for h in harmful for b in benign]
    assert value == pytest.approx(sum(pairs) / len(pairs))
    assert 0 <= interval.low <= interval.high <= 1


def test_the_bootstrap_is_that_of_resampled_answers() -> None:
    rng = np.random.default_rng(1)
    harmful, benign = rng.normal(1, 1, 80), rng.normal(0, 1, 60)
    value, interval = auroc(harmful, benign, seed=3, resamples=2000)
    plain = []
    for _ in range(2000):
        h, b = rng.choice(harmful, 80), rng.choice(benign, 60)
        plain.append((h[:, None] > b).mean() + (h[:, None] == b).mean() / 2)
    assert interval.low < value < interval.high
    assert (interval.low, interval.high) == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.015)


def test_auroc_is_repeatable() -> None:
    rng = np.random.default_rng(0)
    harmful, benign = rng.normal(1, 1, 2000), rng.normal(0, 1, 2000)
    assert auroc(harmful, benign, seed=5) == auroc(harmful, benign, seed=5)
    assert auroc(harmful, benign, seed=6)[1] != auroc(harmful, benign, seed=5)[1]
    assert auroc([0.9, 0.8], [0.1], seed=0) == (1.0, Interval(1.0, 1.0))


@pytest.mark.parametrize(("harmful", "benign"), [([], [0.1]), ([0.1], []), ([math.nan], [0.1])])
def test_auroc_of_nothing(harmful: list[float], benign: list[float]) -> None:
    with pytest.raises(ConfigError, match="give at least one number"):
        auroc(harmful, benign, seed=0)


# -- calibrate ---------------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(policies, st.lists(score_lists, min_size=1, max_size=40), st.floats(0.001, 0.6))
def test_no_more_than_the_target_halt_and_the_threshold_is_the_smallest(
    policy: Policy, lists: list[list[float]], target: float
) -> None:
    benign = [trail(*scores, key=number) for number, scores in enumerate(lists)]
    found = calibrate(policy, benign, target=target, data="test")
    assert found.achieved <= target
    assert (found.halted, found.answers) == (halts(found.policy, benign), len(benign))
    assert found.achieved == found.halted / found.answers
    # only the threshold changed, and the next smaller one would halt too many
    assert replace(found.policy, threshold=policy.threshold) == policy  # pyright: ignore[reportArgumentType]
    lower = math.nextafter(found.policy.threshold, 0)
    if not isinstance(policy, Cusum) or lower > 0:
        assert halts(replace(found.policy, threshold=lower), benign) / len(benign) > target  # pyright: ignore[reportArgumentType]


@settings(max_examples=200)
@given(policies, st.lists(st.lists(unit, min_size=1, max_size=6), min_size=1, max_size=12), st.floats(0.01, 0.6))
def test_scores_of_one_are_refused_only_where_no_threshold_exists(
    policy: Policy, lists: list[list[float]], target: float
) -> None:
    benign = [trail(*scores, key=number) for number, scores in enumerate(lists)]
    try:
        assert calibrate(policy, benign, target=target, data="test").achieved <= target
    except ConfigError:
        assert not isinstance(policy, Cusum)
        assert sum(peak(policy, each) >= 1 for each in benign) / len(benign) > target


def test_a_benign_answer_that_scores_one_is_named() -> None:
    benign = [*trails(0.1, 0.2), trail(0.3, 1.0, key="chat-7", source="traffic")]
    with pytest.raises(ConfigError, match=r"'chat-7' of 'traffic' reaches 1 .*no threshold of Threshold"):
        calibrate(Threshold(), benign, data="test")
    assert calibrate(Threshold(), benign, target=0.4, data="test").policy.threshold == pytest.approx(0.2)
    assert calibrate(Cusum(0.3), benign, data="test").policy.threshold == pytest.approx(0.7)


def test_ties_halt_all_or_none() -> None:
    benign = trails(0.9, 0.5, 0.5, 0.5, *[0.1] * 16)
    found = calibrate(Threshold(), benign, target=0.1, data="test")  # two may halt; three are tied at 0.5
    assert (found.halted, found.achieved) == (1, 0.05)
    assert found.policy.threshold == math.nextafter(0.5, 1)


def test_the_target_is_the_number_that_was_written() -> None:
    benign = trails(*np.linspace(0.1, 0.9, 100))
    assert calibrate(Threshold(), benign, target=0.29, data="test").halted == 29  # 0.29 * 100 is 28.999999999999996
    assert calibrate(Threshold(), benign, target=0.07, data="test").halted == 7
    assert calibrate(Threshold(), trails(0.1, 0.2, 0.3), target=1 / 3, data="test").halted == 1


def test_scores_of_numpy_are_compared_as_doubles() -> None:
    benign = [Trail("a", "s", (0,), (np.float32(0.3),)), Trail("b", "s", (0,), (np.float32(0.2),))]  # pyright: ignore[reportArgumentType]
    assert calibrate(Threshold(), benign, target=0.5, data="test").halted == 1
    assert calibrate(Threshold(), benign, target=0.1, data="test").halted == 0


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Threshold(), 0.8),
        (KofN(2, 3), 0.6),
        (Ewma(0.5), 0.55),
        (Cusum(0.5), 0.4),
        (Ewma(0.5, request=1.0), 0.8),
    ],
)
def test_the_peak_is_that_of_the_policy(policy: Policy, expected: float) -> None:
    assert peak(policy, trail(0.2, 0.8, 0.6)) == pytest.approx(expected)
    assert calibrate(policy, [trail(0.2, 0.8, 0.6)], data="test").policy.threshold == pytest.approx(expected)


def test_too_few_answers_are_said_plainly() -> None:
    found = calibrate(Threshold(), trails(*[0.1] * 50), target=0.005, data="test")
    assert found.halted == 0
    assert not found.verified
    assert found.bound == pytest.approx(1 - 0.05 ** (1 / 50))
    assert "cannot be verified with 50 answers, at least 598 are needed" in found.note
    assert "at most 5.82 %" in found.record()["note"]
    enough = calibrate(Threshold(), trails(*[0.1] * 600), target=0.005, data="test")
    assert "cannot" not in enough.note
    assert enough.verified  # nobody halts: all are tied


def test_a_rate_that_is_met_here_is_not_called_guaranteed() -> None:
    found = calibrate(Threshold(), trails(*np.linspace(0.1, 0.9, 600)), target=0.005, data="test")
    assert found.halted == 3
    assert not found.verified
    assert "not guaranteed for others" in found.note


def test_a_guarantee_keeps_the_bound_below_the_target() -> None:
    benign = trails(*np.random.default_rng(0).uniform(0, 0.9, 2000))
    loose = calibrate(Threshold(), benign, target=0.01, data="test")
    strict = calibrate(Threshold(), benign, target=0.01, guarantee=True, data="test")
    assert (loose.halted, loose.verified) == (20, False)
    assert strict.verified
    assert strict.bound <= 0.01 < upper_bound(strict.halted + 1, 2000)
    assert strict.policy.threshold > loose.policy.threshold


def test_a_guarantee_needs_answers() -> None:
    benign = trails(*[0.1] * 597)
    with pytest.raises(ConfigError, match="597 benign answers; give at least 598"):
        calibrate(Threshold(), benign, guarantee=True, data="test")
    assert calibrate(Threshold(), trails(*[0.1] * 598), guarantee=True, data="test").verified
    with pytest.raises(ConfigError, match="at least 919"):
        calibrate(Threshold(), benign, guarantee=True, confidence=0.99, data="test")


def test_a_guarantee_holds_as_often_as_it_says() -> None:
    """The threshold is set on the same answers that the bound is computed from; the bound must hold all the same."""
    rng = np.random.default_rng(0)
    broken, allowed = 0, 0
    for _ in range(400):
        found = calibrate(
            Threshold(), trails(*rng.uniform(0, 1, 150)), target=0.05, confidence=0.9, guarantee=True, data="test"
        )
        broken += 1 - found.policy.threshold > 0.05  # the true rate of uniform scores
        allowed = found.halted
    exact = sum(binomial(150, k, 0.05) for k in range(allowed + 1))  # below 0.1, as whole answers allow
    assert exact < 0.1
    assert broken / 400 == pytest.approx(exact, abs=0.035)


@pytest.mark.parametrize(
    "options", [{"target": 0}, {"target": 1}, {"target": math.nan}, {"confidence": 0}, {"confidence": 95}]
)
def test_options_without_meaning(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must lie between 0 and 1"):
        calibrate(Threshold(), trails(0.1), data="test", **options)


def test_no_answers_and_a_policy_without_a_threshold_to_set() -> None:
    class Own:
        threshold = 0.5

        def statistic(self, scores: Sequence[float]) -> list[float]:
            return list(scores)

    with pytest.raises(ConfigError, match="no benign answers"):
        calibrate(Threshold(), [], data="test")
    with pytest.raises(ConfigError, match="only a dataclass"):
        calibrate(Own(), trails(0.1), data="test")


@pytest.mark.parametrize(
    ("depths", "scores"),
    [((), ()), ((0, 1), (0.1,)), ((1, 1), (0.1, 0.1)), ((5, 3), (0.1, 0.1)), ((0,), (math.nan,)), ((0,), (1.5,))],
)
def test_trails_that_are_none(depths: tuple[int, ...], scores: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="answer 'x'"):
        Trail("x", "s", depths, scores)


def test_rates_by_source_and_by_depth() -> None:
    low = [trail(0.1, 0.1, 0.1, key=f"l{n}", source="long") for n in range(8)]
    high = [
        trail(0.9, 0.1, 0.95, key="at 0", source="long"),  # halts at 0, above again at 50
        trail(0.1, 0.1, 0.1, 0.1, 0.1, 0.8, key="at 125", source="chat"),
    ]
    found = calibrate(Threshold(), [*low, *high], target=0.2, data="test")
    rates = found.per_source
    assert list(rates) == ["chat", "long"]
    assert (rates["long"].answers, rates["long"].halted, rates["chat"].rate) == (9, 1, 1.0)
    assert rates["long"].interval == clopper_pearson(1, 9)
    assert [(b.low, b.high, b.answers, b.halted, b.checks, b.above) for b in found.per_depth] == [
        (0, 0, 10, 1, 10, 1),
        (1, 25, 10, 0, 10, 0),
        (26, 50, 10, 0, 10, 1),
        (51, 100, 1, 0, 2, 0),
        (101, 200, 1, 1, 1, 1),
    ]
    assert sum(bucket.halted for bucket in found.per_depth) == found.halted


@given(st.integers(0, 100_000))
def test_every_depth_is_in_the_range_that_names_it(depth: int) -> None:
    (bucket,) = calibrate(Threshold(), [Trail("a", "s", (depth,), (0.1,))], data="test").per_depth
    assert bucket.low <= depth <= bucket.high


def test_the_record_is_json_and_says_it_all() -> None:
    found = calibrate(Threshold(), trails(*np.linspace(0.1, 0.9, 30), source="traffic"), target=0.1, data="May traffic")
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert record == found.record()
    assert record["interval"] == clopper_pearson(3, 30).record()
    assert (record["target"], record["achieved"], record["halted"], record["data"]) == (0.1, 0.1, 3, "May traffic")
    assert record["per_source"]["traffic"]["answers"] == 30
    assert {"depths", "halted_rate", "above_rate"} <= record["per_depth"][0].keys()


def test_a_recalibrated_probe_scores_the_same_and_halts_by_its_new_policy(tmp_path: Any) -> None:
    card = ProbeCard(
        ModelIdentity("org/m", None, "llama", 4, 2, "f"), (1, 2), (Read(Site(1), 1),), policy={"name": "threshold"}
    )
    old = LinearProbe(np.arange(4.0), 0.5, card)
    found = calibrate(Ewma(0.4), trails(*np.linspace(0.1, 0.9, 30)), target=0.1, data="test")
    new = recalibrated(old, found, schedule="Every(25)")
    new.save(tmp_path / "probe.safetensors")
    loaded = LinearProbe.load(tmp_path / "probe.safetensors")
    assert loaded.policy == found.policy
    assert loaded.card.policy == policy_record(found.policy)
    assert loaded.card.calibration == {**found.record(), "schedule": "Every(25)"}
    assert (loaded.weight.tolist(), loaded.bias) == (old.weight.tolist(), old.bias)
    assert old.card is card


# -- harmful answers ---------------------------------------------------------------------------------------------------


def test_an_operating_point_counts_answers_depths_and_tokens() -> None:
    harmful = [
        trail(0.9, 0.1, key="at once", source="a"),
        trail(0.1, 0.1, 0.9, key="late", source="a"),
        trail(0.1, 0.2, 0.1, 0.1, key="missed", source="b"),
    ]
    found = operating_point(Threshold(0.5), harmful)
    assert (found.halted.halted, found.halted.answers) == (2, 3)
    assert found.halted.interval == clopper_pearson(2, 3)
    assert (found.depth.median, found.depth.largest) == (25.0, 50)
    assert (found.released.median, found.released.largest) == (12.5, 25)  # hold: the window of the halting check stays
    assert found.missed.largest == 75
    assert found.per_source["b"].rate == 0
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert (record["rate"], record["tokens_before_halt"]["largest"]) == (pytest.approx(2 / 3), 25)
    nobody = operating_point(Threshold(1.0), harmful).record()
    assert nobody["depth_of_halt"] == {"median": None, "p90": None, "largest": None}
    with pytest.raises(ConfigError, match="no harmful answers"):
        operating_point(Threshold(), [])


def test_a_prefill_hides_the_checks_inside_it() -> None:
    answer = trail(0.1, 0.9, 0.2, 0.8, 0.3)  # depths 0, 25, 50, 75, 100
    points = from_prefill(Threshold(0.5), [answer], [0, 10, 25, 26, 60, 100, 101, None], inside=False)
    assert [(p.halted.halted, p.at_once.halted, p.halted.answers) for p in points] == [
        (1, 0, 1),
        (1, 1, 1),
        (1, 1, 1),
        (1, 0, 1),  # the check at 25 is inside the prefill: 50 is read, then 75 halts
        (1, 1, 1),
        (0, 0, 1),
        (0, 0, 0),  # the answer is shorter
        (0, 0, 1),
    ]
    assert points[-2].record()["halted"]["rate"] is None
    json.dumps([point.record() for point in points], allow_nan=False)


def test_a_prefill_needs_depth_0() -> None:
    with pytest.raises(ConfigError, match=r"'x' has no check at depth 0"):
        from_prefill(Threshold(), [Trail("x", "s", (25, 50), (0.1, 0.2))], [25])


def test_what_is_read_inside_a_prefill_counts() -> None:
    answer = trail(0.1, 0.9, 0.2, 0.2, 0.3)
    points = from_prefill(Threshold(0.5), [answer], [0, 25, 60, None])
    assert [(p.halted.halted, p.at_once.halted) for p in points] == [(1, 0), (1, 1), (1, 1), (1, 1)]


@given(policies, score_lists, st.integers(0, 11), st.booleans())
def test_a_prefill_is_what_the_flow_makes_of_it(policy: Policy, scores: list[float], place: int, inside: bool) -> None:
    answer = trail(*scores)
    end = answer.depths[min(place, len(scores) - 1)]
    (point,) = from_prefill(policy, [answer], [end], inside=inside)
    verdict, first_asked = by_flow(policy, answer, end, inside)
    assert point.halted.halted == verdict.verdict.halt
    assert point.at_once.halted == (verdict.verdict.halt and verdict.verdict.depth in first_asked)


def by_flow(policy: Policy, answer: Trail, prefill: int, inside: bool) -> tuple[Outcome, set[int]]:
    """Let the guard's own flow go over the scores of a trail, whose beginning is a prefill."""
    known = dict(zip(answer.depths, answer.scores, strict=True))
    length = answer.depths[-1] - prefill
    later = tuple(depth - prefill for depth in answer.depths if depth > prefill)
    read = {depth: Score(score) for depth, score in known.items() if 0 < depth < prefill and inside}
    flow = guarded(Plan(Listed(later), policy, max(1, length), prefill=prefill, inside=read))
    reply: Any = None
    while True:
        try:
            command = flow.send(reply)
        except StopIteration as done:
            return done.value, {0, *read, prefill}
        reply = None
        if isinstance(command, Check):
            reply = Score(known[command.depth])
        elif isinstance(command, Decode):
            # the whole answer is the prefill: the model only ends its turn, and the end is checked at the same depth
            reply = Decoded((1,) * command.n) if length else Decoded((2,), "stop", 1)


def test_an_answer_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'b' of 's' is given more than once \(3 answers, 2 different ones\)"):
        calibrate(Threshold(), [trail(0.1, key="a"), trail(0.2, key="b"), trail(0.2, key="b")], data="test")


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (Threshold(math.nextafter(0.0, 1.0)), "as soon as it scores anything"),
        (Threshold(1.0), "next to none"),
        (Cusum(threshold=1.5), None),
        (Threshold(0.5), None),
    ],
)
def test_a_threshold_at_an_end_of_the_range_is_said(policy: Policy, says: str | None) -> None:
    note = threshold_note(policy)
    assert note is None if says is None else says in str(note)


@pytest.mark.parametrize(("answers", "allowed"), [(598, 0), (1000, 1), (5000, 16), (20000, 83)])
def test_thresholds_are_tested_from_the_strictest_down(answers: int, allowed: int) -> None:
    """Learn then Test stops before the first p-value above 1 - confidence; it is the exact upper bound's own rule."""
    assert guaranteed_halts(0.005, answers, 0.95) == allowed
    assert upper_bound(allowed, answers) <= 0.005 < upper_bound(allowed + 1, answers)
    stats = pytest.importorskip("scipy.stats")
    assert stats.binom.cdf(allowed, answers, 0.005) <= 0.05 < stats.binom.cdf(allowed + 1, answers, 0.005)


def test_the_strictest_threshold_may_fail_the_test() -> None:
    with pytest.raises(ConfigError, match=r"cannot be guaranteed with 95 % confidence from 597 .* give at least 598"):
        guaranteed_halts(0.005, 597, 0.95)
    assert [allowed_halts(0.1, count) for count in (9, 10, 29, 30)] == [0, 1, 2, 3]
