"""Fitting on planted states: the direction is found, folded exactly, and weighed as asked."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from anydepth.backends.protocol import ModelIdentity, Read, Site
from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.errors import ConfigError, MissingExtra, StoreError
from anydepth.probes.fitting.fit import Balance, FitOptions, fit, sample_weights
from anydepth.probes.states.store import Checks
from anydepth.types import Score
from tests.planted import READS, WIDTH, direction, planted


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one.ravel() @ other.ravel() / np.linalg.norm(one) / np.linalg.norm(other))


def flipped(checks: Checks, prompts: set[str]) -> Checks:
    label = checks["label"].copy()
    swap = np.isin(checks["prompt_key"], sorted(prompts))
    label[swap] = np.where(label[swap] == "harmful", "benign", "harmful")
    return replace(checks, columns={**checks.columns, "label": label})


def scale_of(checks: Checks) -> np.ndarray:
    return checks.states.reshape(len(checks), -1).std(0)


@pytest.mark.parametrize("method", ["logistic", "mass-mean"])
def test_a_planted_direction_is_found_and_separates_new_answers(method: Any) -> None:
    checks = planted(200)
    found = fit(checks, FitOptions(method=method))
    assert found.weight.shape == (READS, WIDTH) and found.checks == 150 * 4
    # back in standardised units the weight points where the planted direction does
    assert cosine(found.weight.ravel() * scale_of(checks), direction()) > 0.9
    fresh = planted(80, split="fresh")
    harmful = fresh["label"] == "harmful"
    assert ((found.logits(fresh.states) > 0) == harmful).mean() > 0.95


@pytest.mark.parametrize("strength", [0.001, 0.1])
def test_the_fold_gives_the_logits_of_the_pipeline(strength: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    checks = planted()
    found = fit(checks, FitOptions(strength, balance="source", first_depth=0))
    flat = checks.states.reshape(len(checks), -1).astype(np.float64)
    scaler = preprocessing.StandardScaler().fit(flat)
    model = linear_model.LogisticRegression(C=strength, max_iter=500, tol=1e-6)
    weights = sample_weights(checks.columns, "source")
    model.fit(scaler.transform(flat), checks["label"] == "harmful", sample_weight=weights)
    expected = model.decision_function(scaler.transform(flat))
    assert np.abs(found.logits(checks.states) - expected).max() < 2e-3 * max(1.0, np.abs(expected).max())


def test_the_fold_is_exact() -> None:
    """Whatever the solver found on standardised states, the raw states give the same logits."""
    from anydepth.probes.fitting import fit as module

    checks = planted()
    options = FitOptions(first_depth=0)
    found = fit(checks, options)
    flat = checks.states.reshape(len(checks), -1)
    mean, scale = flat.mean(0), flat.std(0) + 1e-6
    states = (flat - mean) / scale
    weights = sample_weights(checks.columns, options.balance)
    weight, bias = module.direction_of(states, checks["label"] == "harmful", weights, options)
    expected = states.astype(np.float64) @ weight + bias
    assert np.abs(found.logits(checks.states) - expected).max() < 1e-4


def test_logits_are_those_that_the_probe_will_give() -> None:
    checks = planted()
    wide = replace(checks, states=checks.states * 1000)  # some models have states of this size
    found = fit(wide, FitOptions())
    model = ModelIdentity("org/m", None, "llama", WIDTH, 4, "f1")
    card = ProbeCard(model, (1, 2, 3), (Read(Site(2), 2), Read(Site(3), 1)))
    scores = [
        score.value
        for score in LinearProbe(found.weight, found.bias, card).score_each(wide.states)
        if isinstance(score, Score)
    ]
    logits = found.logits(wide.states)
    assert logits.dtype == np.float64
    assert np.abs(1 / (1 + np.exp(-logits)) - scores).max() < 1e-12


def totals(columns: Mapping[str, np.ndarray], weights: np.ndarray, *names: str) -> dict[Any, float]:
    found: dict[Any, float] = defaultdict(float)
    for key, weight in zip(zip(*(columns[name].tolist() for name in names), strict=True), weights, strict=True):
        found[key] += weight
    return found


def uneven() -> dict[str, np.ndarray]:
    """Many harmful checks of one source at one depth, few of the others."""
    rows = [("harmful", "a", 25)] * 40 + [("harmful", "a", 0)] * 2 + [("harmful", "b", 300)] * 5
    rows += [("benign", "a", 0)] * 3 + [("benign", "c", 25)] * 9 + [("benign", "d", 60)]
    label, source, depth = zip(*rows, strict=True)
    return {"label": np.array(label), "source": np.array(source), "depth": np.array(depth)}


@pytest.mark.parametrize(
    ("balance", "levels"),
    [("label", ["label"]), ("source", ["label", "source"]), ("depth", ["label", "source", "depth"])],
)
def test_weights_balance_every_level(balance: Balance, levels: list[str]) -> None:
    columns = uneven()
    weights = sample_weights(columns, balance)
    assert (weights > 0).all() and weights.mean() == pytest.approx(1)
    for count in range(1, len(levels) + 1):
        siblings: dict[Any, list[float]] = defaultdict(list)
        for key, total in totals(columns, weights, *levels[:count]).items():
            siblings[key[:-1]].append(total)
        for group in siblings.values():
            assert group == pytest.approx([group[0]] * len(group))


def test_below_the_level_asked_for_every_check_weighs_the_same() -> None:
    columns = uneven()
    weights = sample_weights(columns, "label")
    for label in ("harmful", "benign"):
        assert len(set(weights[columns["label"] == label].round(12))) == 1


def test_depths_are_balanced_by_ranges() -> None:
    columns = {
        "label": np.array(["harmful"] * 4 + ["benign"]),
        "source": np.array(["a"] * 5),
        "depth": np.array([100, 150, 200, 300, 0]),  # 150 and 200 are one range
    }
    weights = sample_weights(columns, "depth")
    assert weights[1] == weights[2] == pytest.approx(weights[0] / 2) and weights[0] == weights[3]


def test_the_balance_reaches_the_fit() -> None:
    """Ten times as many harmless checks do not push the bias."""
    checks = planted(220, gap=1.5)
    few = (checks["label"] == "benign") | np.isin(checks["id"], [f"c{n}" for n in range(1, 220, 20)])
    offset = fit(checks.where(few), FitOptions(balance="label")).logits(checks.states).mean()
    assert abs(offset) < 0.5


def test_shallow_and_unlabelled_checks_are_left_out() -> None:
    checks = planted(20)
    label = checks["label"].copy()
    label[checks["id"] == "c3"] = ""
    checks = replace(checks, columns={**checks.columns, "label": label})
    assert fit(checks, FitOptions(first_depth=0)).checks == 19 * 4
    assert fit(checks, FitOptions(first_depth=1)).checks == 19 * 3
    assert fit(checks, FitOptions(first_depth=50)).checks == 19


def test_a_part_says_from_which_depth_its_checks_are_trained_on() -> None:
    checks = planted(20)
    first = np.where(checks["id"] == "c3", 25, 0)
    checks = replace(checks, columns={**checks.columns, "first_depth": first})
    assert fit(checks, FitOptions(first_depth=0)).checks == 20 * 4 - 2
    assert fit(checks, FitOptions(first_depth=50)).checks == 20


@pytest.mark.parametrize("balance", ["label", "source", "depth"])
def test_a_part_has_a_weight_beside_the_others_of_its_label(balance: Balance) -> None:
    columns = {**uneven(), "weight": np.where(uneven()["depth"] == 0, 3.0, 1.0)}
    plain, weighted = sample_weights(uneven(), balance), sample_weights(columns, balance)
    for label in ("harmful", "benign"):
        of_label = columns["label"] == label
        assert weighted[of_label].sum() == pytest.approx(plain[of_label].sum())
        shallow = of_label & (columns["depth"] == 0)
        deep = of_label & (columns["depth"] != 0)
        assert np.ptp((weighted / plain)[shallow]) == pytest.approx(0)
        assert (weighted / plain)[shallow][0] == pytest.approx(3 * (weighted / plain)[deep][0])
    assert np.allclose(sample_weights({**uneven(), "weight": np.full(60, 2.0)}, balance), plain)


def test_the_weight_of_a_part_reaches_the_fit() -> None:
    """Wrong labels of one part count for little where its weight is small."""
    checks = planted(200)
    wrong = set(sorted(set(checks["prompt_key"]))[:90])
    noisy = flipped(checks, wrong)
    light = np.where(np.isin(checks["prompt_key"], sorted(wrong)), 0.01, 1.0)
    weighted = replace(noisy, columns={**noisy.columns, "weight": light})
    fresh = planted(80, split="fresh")
    labels = np.where(fresh["label"] == "harmful", 1, -1)
    margins = [float((fit(each, FitOptions()).logits(fresh.states) * labels).mean()) for each in (noisy, weighted)]
    assert margins[1] > 2 * margins[0]


@pytest.mark.parametrize("label", ["harmful", "benign"])
def test_one_label_is_refused_with_the_counts(label: str) -> None:
    checks = planted(20)
    counts = "30 harmful and 0 benign" if label == "harmful" else "0 harmful and 30 benign"
    with pytest.raises(StoreError, match=rf"there are {counts} checks at depths from 1 on; a probe needs both"):
        fit(checks.where(checks["label"] == label), FitOptions())


def test_no_checks_are_refused() -> None:
    with pytest.raises(StoreError, match="there are 0 harmful and 0 benign checks"):
        fit(planted(4), FitOptions(first_depth=1000))


def test_bags_are_seeded_and_averaged() -> None:
    checks = planted(60, gap=1.0)
    bagged = FitOptions(bags=3, seed=5)
    one, again, other = fit(checks, bagged), fit(checks, bagged), fit(checks, replace(bagged, seed=6))
    assert np.array_equal(one.weight, again.weight) and one.bias == again.bias
    assert not np.array_equal(one.weight, other.weight)
    whole = fit(checks, FitOptions(seed=5))
    assert np.array_equal(whole.weight, fit(checks, FitOptions(seed=6)).weight), "a single fit draws nothing"
    assert not np.array_equal(whole.weight, one.weight) and cosine(whole.weight, one.weight) > 0.9


def test_a_bag_draws_own_prompts_and_those_of_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 40 prompts has an answer of its own, and one that is moved under the request of the seventh next."""
    plain = planted(40, depths=(4, 25))
    keys = list(dict.fromkeys(plain["prompt_key"].tolist()))
    next_of = {key: keys[(place + 7) % 40] for place, key in enumerate(keys)}
    hosts = np.array([next_of[key] for key in plain["prompt_key"]])
    columns = {name: np.concatenate([column, column]) for name, column in plain.columns.items()}
    columns["host_key"] = np.concatenate([plain["prompt_key"], hosts])
    numbered = np.arange(160, dtype=np.float32)[:, None, None]
    bags: list[np.ndarray] = []

    def direction_of(
        states: np.ndarray, labels: np.ndarray, weights: np.ndarray, options: FitOptions
    ) -> tuple[np.ndarray, float]:
        places = np.rint(states[:, 0] * numbered.std() + numbered.mean()).astype(int)
        bags.append(np.zeros(160))
        bags[-1][places] = weights
        return np.ones(1), 0.0

    monkeypatch.setattr("anydepth.probes.fitting.fit.direction_of", direction_of)
    monkeypatch.setattr("anydepth.probes.fitting.fit.sample_weights", lambda columns, balance: np.ones(160))
    fit(Checks(columns, numbered), FitOptions(bags=30, first_depth=0))
    for bag in bags:
        times = dict(zip(plain["prompt_key"].tolist(), bag[:80].tolist(), strict=True))
        assert sum(times.values()) == 40 and 15 < sum(count > 0 for count in times.values()) < 35
        assert bag[:80].tolist() == [times[key] for key in plain["prompt_key"]], "all checks of a prompt go together"
        assert bag[80:].tolist() == [times[key] * times[next_of[key]] for key in plain["prompt_key"]]
    assert len({tuple(bag) for bag in bags}) == 30
    bags.clear()
    fit(Checks(columns, numbered), FitOptions(first_depth=0))
    assert [bag.tolist() for bag in bags] == [[1.0] * 160], "a single fit draws nothing"


def test_what_stands_before_a_harmful_stretch_is_weighed_with_its_hosts_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the harmful source would be a benign source of its own, of as much weight as all others together."""
    checks = planted(60)
    spliced = (checks["label"] == "harmful") & (checks["depth"] <= 4)
    begins = np.where(checks["label"] == "harmful", 4, -1)
    more = {
        "source": np.where(checks["label"] == "harmful", "attacks", "chat"),
        "host_source": np.full(len(checks), "chat"),
        "harm_begins": begins,
        "harm_ends": np.where(begins > 0, 100, -1),
        "grace": np.full(len(checks), 5),
    }
    seen: list[np.ndarray] = []

    def direction_of(states: Any, labels: np.ndarray, weights: np.ndarray, options: Any) -> tuple[np.ndarray, float]:
        seen.append(weights / weights[~labels].sum())
        return np.ones(states.shape[1]), 0.0

    monkeypatch.setattr("anydepth.probes.fitting.fit.direction_of", direction_of)
    fit(replace(checks, columns={**checks.columns, **more}), FitOptions(first_depth=0))
    harmful = np.flatnonzero(~(spliced | (checks["label"] == "benign")))
    before = np.isin(np.delete(np.arange(len(checks)), harmful), np.flatnonzero(spliced))
    (weights,) = seen
    benign = np.delete(weights, harmful)
    assert benign[before].sum() == pytest.approx(60 / 180), "as many as they are: 60 of 180 benign checks"


def test_a_fold_is_cleaned_by_a_fit_that_shares_no_host_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cleanlab.rank")
    checks = planted(40, depths=(25,))
    hosts = np.array([f"h{number // 2}" for number in range(40)])
    numbered = np.arange(40, dtype=np.float32)[:, None]
    fits: list[set[int]] = []

    def direction_of(states: np.ndarray, *_: Any) -> tuple[np.ndarray, float]:
        fits.append(set(states[:, 0].astype(int).tolist()))
        return np.ones(1), 0.0

    monkeypatch.setattr("anydepth.probes.fitting.fit.direction_of", direction_of)
    from anydepth.probes.fitting.fit import _credible

    keys = (checks["prompt_key"], hosts)
    _credible(numbered, checks["label"] == "harmful", keys, np.ones(40), FitOptions(clean=0.1))
    assert len(fits) == 5
    for each in fits:
        # what the fit has not seen is a fold of 8 and whatever shares a host with it
        assert {number ^ 1 for number in each} == each and len(each) <= 32


def test_a_bag_of_one_label_says_what_to_do() -> None:
    checks = planted(40)
    one = checks.where((checks["label"] == "benign") | (checks["id"] == "c1"))
    with pytest.raises(StoreError, match="answers of one label only; collect answers to more prompts"):
        fit(one, FitOptions(bags=25))


def test_cleaning_drops_labels_that_were_flipped() -> None:
    pytest.importorskip("cleanlab.rank")
    checks = planted(100, gap=5.0)
    wrong = set(sorted(set(checks["prompt_key"]))[:8])
    noisy = flipped(checks, wrong)
    plain, cleaned = fit(noisy, FitOptions()), fit(noisy, FitOptions(clean=0.1))
    assert plain.dropped == 0 and plain.checks == 300
    assert cleaned.dropped == pytest.approx(30, abs=1) and cleaned.checks + cleaned.dropped == 300
    truth = planted(100, gap=5.0, split="fresh")
    labels = np.where(truth["label"] == "harmful", 1, -1)
    margin = [float((each.logits(truth.states) * labels).mean()) for each in (plain, cleaned)]
    assert margin[1] > 1.2 * margin[0]


def test_cleaning_drops_the_flipped_ones_and_not_others() -> None:
    pytest.importorskip("cleanlab.rank")
    from anydepth.probes.fitting.fit import _credible

    checks = planted(100, gap=5.0)
    wrong = set(sorted(set(checks["prompt_key"]))[:10])
    noisy = flipped(checks, wrong)
    states = noisy.states.reshape(len(noisy), -1)
    states = (states - states.mean(0)) / states.std(0)
    labels = noisy["label"] == "harmful"
    keep = _credible(states, labels, (noisy["prompt_key"],) * 2, np.ones(len(noisy)), FitOptions(clean=0.1))
    is_wrong = np.isin(noisy["prompt_key"], sorted(wrong))
    assert (~keep & is_wrong).sum() >= 0.9 * is_wrong.sum()


def test_cleaning_needs_several_prompts() -> None:
    pytest.importorskip("cleanlab.rank")
    checks = planted(2)
    one = replace(checks, columns={**checks.columns, "prompt_key": np.full(len(checks), "k")})
    with pytest.raises(StoreError, match="clean needs answers to at least 2 prompts"):
        fit(one, FitOptions(clean=0.1))
    with pytest.raises(StoreError, match="answers of one label only"):
        fit(checks, FitOptions(clean=0.1))


def test_cleaning_without_cleanlab_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cleanlab.rank", None)
    with pytest.raises(MissingExtra, match=r"pip install 'anydepth\[fit\]'"):
        fit(planted(20), FitOptions(clean=0.1))


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"strength": 0}, "strength is 0; it must be above 0"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"balance": "prompt"}, "balance is 'prompt'; choose label, source or depth"),
        ({"method": "forest"}, "method is 'forest'; choose logistic or mass-mean"),
        ({"clean": 0.5}, "clean is 0.5; drop a share"),
        ({"clean": -0.1}, "clean is -0.1"),
        ({"bags": 0}, "bags is 0; average at least 1"),
    ],
)
def test_options_that_there_cannot_be_are_refused(option: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        FitOptions(**option)


def test_states_that_are_all_the_same_or_not_finite_are_refused() -> None:
    checks = planted(40)
    with pytest.raises(StoreError, match="have the very same state"):
        fit(replace(checks, states=np.ones_like(checks.states)), FitOptions())
    broken = checks.states.copy()
    broken[checks["depth"] > 0, 0, 3] = np.inf
    with pytest.raises(StoreError, match="are not finite; collect them again with another dtype"):
        fit(replace(checks, states=broken), FitOptions())
