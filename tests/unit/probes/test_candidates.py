"""Sweeps: which candidates a recipe means, in which order they come out, and what the choice may look at."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anydepth.backends.protocol import CONTENT, WHOLE, ModelIdentity, Read, Site
from anydepth.errors import ConfigError, StoreError
from anydepth.policy import Ewma, Threshold
from anydepth.probes.fitting.candidates import Candidate, Comparison, Used, candidates, means_named, states_of, sweep
from anydepth.probes.fitting.fit import FitOptions
from anydepth.probes.fitting.measure import halted_share
from anydepth.probes.recipe.pairs import Pair
from anydepth.probes.states.facts import AnswerFacts
from anydepth.probes.states.store import CheckRow, Checks, Manifest, StateStore
from tests.planted import WIDTH, planted

SITES = (Site(2), Site(3), Site(5))
MODEL = ModelIdentity("org/m", None, "llama", WIDTH, 8, "f1")
MANIFEST = Manifest(
    MODEL, "digest", "header", (1, 2, 3, 4), ("a", "b", "c", "d"), 2, SITES, (CONTENT, 2, 3), "float32", {}
)
PAIR = Pair("harmful vs benign", ("v",), ("v",))


def everything(checks: Checks) -> np.ndarray:
    return np.ones(len(checks), bool)


JUDGE = Comparison((PAIR,), ({"name": "threshold"},), everything)


def rows_of(checks: Checks) -> list[CheckRow]:
    facts = {
        name: checks[name].tolist() for name in ("id", "answer", "split", "source", "label", "prompt_key", "depth")
    }
    rows = [dict(zip(facts, values, strict=True)) for values in zip(*facts.values(), strict=True)]
    return [CheckRow(view="own", licence="MIT", length=50, **row) for row in rows]


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    """The label can be read at block 3, token 2 only; the other states are noise."""
    store = StateStore.create(tmp_path / "store", MANIFEST)
    rng = np.random.default_rng(0)
    for split in ("train", "v"):
        checks = planted(40, split=split)
        states = {site: rng.standard_normal((len(checks), 3, WIDTH)).astype(np.float32) for site in SITES}
        states[Site(3)][:, 1] = checks.states[:, 0]
        states[Site(5)][:, 2] = checks.states[:, 1]
        store.write(split, rows_of(checks), states)
    return store


def used(split: str, *, label: str = "benign", source: str = "s", reading: str = "") -> Used:
    return Used(AnswerFacts("i", split, source, label, "MIT", "k"), reading)


def reads(found: Sequence[Candidate]) -> list[list[str]]:
    return [[str(read) for read in each.reads] for each in found]


def test_by_default_every_site_is_tried_at_the_read_token() -> None:
    found = candidates(MANIFEST, {})
    assert reads(found) == [["2.input_layernorm@2"], ["3.input_layernorm@2"], ["5.input_layernorm@2"]]
    assert {each.options for each in found} == {FitOptions()}


def test_tokens_have_names() -> None:
    found = candidates(MANIFEST, {"layers": 3, "tokens": ["read", "last", "content", 2, ["read", "content"]]})
    assert reads(found) == [
        ["3.input_layernorm@2"],
        ["3.input_layernorm@3"],
        ["3.input_layernorm@content"],
        ["3.input_layernorm@2", "3.input_layernorm@content"],
    ], "index 2 is the read token: the same candidate is not tried twice"


def test_a_token_named_twice_is_read_once() -> None:
    same = replace(MANIFEST, read_index=3)
    assert reads(candidates(same, {"layers": [3], "tokens": [["read", "last"]]})) == [["3.input_layernorm@3"]]


def test_means_have_names_too() -> None:
    manifest = replace(MANIFEST, tokens=(CONTENT, 2, -2, -25, WHOLE))
    settings = {"layers": 3, "tokens": ["mean", ["read", "mean25"], ["mean2", "mean", "mean2"]]}
    assert reads(candidates(manifest, settings)) == [
        ["3.input_layernorm@mean"],
        ["3.input_layernorm@2", "3.input_layernorm@mean25"],
        ["3.input_layernorm@mean2", "3.input_layernorm@mean"],
    ]
    assert means_named(settings) == (-2, -25, WHOLE)
    assert means_named({}) == means_named({"tokens": ["read", ["last", 2]]}) == ()
    assert means_named({"tokens": "mean25"}) == (-25,)


def test_layers_may_be_sites_and_a_block_then_means_the_others() -> None:
    manifest = replace(MANIFEST, sites=(Site(2), Site(3), Site(3, "mlp"), Site(5, "mlp")))
    assert reads(candidates(manifest, {"layers": ["3.mlp", 3, [2, "5.mlp"], 0.4, 5]})) == [
        ["3.mlp@2"],
        ["3.input_layernorm@2"],
        ["2.input_layernorm@2", "5.mlp@2"],
        ["5.mlp@2"],
    ]
    assert reads(candidates(manifest, {"layers": 3})) == [["3.input_layernorm@2", "3.mlp@2"]]


def test_layers_are_blocks_shares_or_lists_to_concatenate() -> None:
    assert reads(candidates(MANIFEST, {"layers": [0.6, [2, 0.4]]})) == [
        ["5.input_layernorm@2"],
        ["2.input_layernorm@2", "3.input_layernorm@2"],
    ]
    assert reads(candidates(MANIFEST, {"layers": 0.25})) == [["2.input_layernorm@2"]]


def test_lists_are_swept_and_every_combination_is_tried_once() -> None:
    found = candidates(
        MANIFEST, {"layers": [2, 3], "strength": [0.1, 1, 0.1], "balance": "label", "first_depth": [0, 4]}, seed=9
    )
    assert len(found) == len(set(found)) == 2 * 2 * 2
    assert {(each.options.strength, each.options.first_depth) for each in found} == {(0.1, 0), (0.1, 4), (1, 0), (1, 4)}
    assert {(each.options.balance, each.options.seed) for each in found} == {("label", 9)}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"strenght": 1}, "[fit] has 'strenght'; it takes layers, tokens, strength"),
        ({"layers": 4}, "layer 4 was not collected; there are 2.input_layernorm, 3.input_layernorm"),
        ({"layers": 1.5}, "layer 1.5 was not collected"),
        ({"tokens": 0}, "token 0 was not collected; there are content, 2, 3"),
        ({"tokens": "first"}, "token 'first' was not collected"),
        ({"tokens": "mean25"}, "token 'mean25' was not collected; there are content, 2, 3"),
        ({"tokens": ["read", "mean1"]}, "[fit] tokens: token is 'mean1'; write an index in the header"),
        ({"layers": "3.mlp"}, "layer '3.mlp' was not collected; there are 2.input_layernorm"),
        ({"layers": ["mlp"]}, "site is 'mlp'; write it as BLOCK.MODULE"),
        ({"strength": []}, "[fit] has an empty list"),
        ({"layers": []}, "[fit] has an empty list"),
        ({"strength": [0.1, -1]}, "[fit] strength = -1: strength is -1; it must be above 0"),
        ({"strength": "0.1"}, "[fit] strength = '0.1':"),
        ({"bags": 0}, "bags is 0"),
    ],
)
def test_what_cannot_be_tried_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        candidates(MANIFEST, settings)
    assert says in str(error.value)


def test_the_best_comes_first_and_all_are_told(store: StateStore) -> None:
    told: list[tuple[int, int]] = []
    wanted = candidates(MANIFEST, {"tokens": ["read", "last"], "strength": [0.01, 0.1]})
    trials = sweep(store, wanted, JUDGE, progress=lambda *facts: told.append(facts))
    assert told == [(n + 1, 12) for n in range(12)] and len(trials) == 12
    merits = [trial.merit for trial in trials]
    assert merits == sorted(merits, reverse=True)
    best = {(trial.candidate.reads[0].site.block, trial.candidate.reads[0].token) for trial in trials[:4]}
    assert best == {(3, 2), (5, 3)} and merits[0] > 0.95 and merits[4] < 0.8
    assert trials[0].separation == {PAIR.name: merits[0]}
    assert trials[0].record()["reads"] == [str(read) for read in trials[0].candidate.reads]


def test_reads_can_be_put_together(store: StateStore) -> None:
    both = Candidate((Read(Site(3), 2), Read(Site(5), 3)), FitOptions())
    single = [Candidate((read,), FitOptions()) for read in both.reads]
    trials = {trial.candidate: trial for trial in sweep(store, [both, *single], JUDGE)}
    assert trials[both].fitted.weight.shape == (2, WIDTH)
    assert trials[both].merit >= max(trials[each].merit for each in single)


def test_the_judge_sees_held_out_answers_that_it_may_see_only(store: StateStore) -> None:
    checks = states_of(store, [Read(Site(3), 2)])
    shown = Comparison((PAIR,), ({"name": "threshold"},), lambda checks: checks["depth"] == 25).seen(checks)
    assert set(shown["split"].tolist()) == {"v"} and set(shown["depth"].tolist()) == {25}


def test_the_policy_that_separates_best_is_taken_the_first_of_equals(store: StateStore) -> None:
    policies = ({"name": "threshold"}, {"name": "threshold", "threshold": 0.9}, {"name": "ewma", "alpha": 0.3})
    judge = Comparison((PAIR,), policies, everything)
    wanted = [Candidate((Read(Site(3), 2),), FitOptions())]
    (trial,) = sweep(store, wanted, judge)
    alone = [sweep(store, wanted, replace(judge, policies=(policy,)))[0].merit for policy in policies]
    assert trial.merit == max(alone)
    assert trial.policy == (Ewma(alpha=0.3) if alone[2] > alone[0] else Threshold())


def test_the_choice_can_be_made_by_what_is_halted(store: StateStore) -> None:
    wanted = candidates(MANIFEST, {"tokens": ["read", "last"]})
    judge = replace(JUDGE, by="halted", benign=("v",), target=0.1)
    trials = sweep(store, wanted, judge)
    assert [trial.rank for trial in trials] == sorted((trial.rank for trial in trials), reverse=True)
    checks = states_of(store, trials[0].candidate.reads)
    held_out = checks.where(checks["split"] == "v")
    logits = trials[0].fitted.logits(held_out.states)
    share = halted_share(held_out, logits, PAIR, trials[0].policy, benign=("v",), target=0.1)
    assert trials[0].merit == share == trials[0].halted[PAIR.name] and share > 0.8 > trials[-1].merit
    assert trials[0].record()["halted"] == {PAIR.name: share}
    plain = sweep(store, wanted, JUDGE)
    assert all(trial.halted == {} for trial in plain)


def test_of_equal_shares_the_one_that_separates_better_is_chosen(store: StateStore) -> None:
    one, other = sweep(store, candidates(MANIFEST, {"layers": [2, 3]}), JUDGE)
    assert one.rank[1] > other.rank[1]
    assert replace(one, merit=0.5).rank > replace(other, merit=0.5).rank < replace(other, merit=0.6).rank


def test_no_policy_is_refused(store: StateStore) -> None:
    with pytest.raises(ConfigError, match="no policy to try"):
        sweep(store, candidates(MANIFEST, {"layers": 3}), replace(JUDGE, policies=()))


def test_a_pair_without_answers_says_which(store: StateStore) -> None:
    judge = replace(JUDGE, pairs=(Pair("p", ("v",), ("w",)),))
    with pytest.raises(StoreError, match="no answers of w that are benign"):
        sweep(store, candidates(MANIFEST, {"layers": 3}), judge)


def test_answers_of_an_earlier_recipe_are_not_used(store: StateStore) -> None:
    read = [Read(Site(3), 2)]
    whole = states_of(store, read)
    keys = sorted(set(whole["answer"][whole["split"] == "train"].tolist()))
    splits = {**dict.fromkeys(keys[:10], "train"), **dict.fromkeys(keys[10:14], "w")}
    found = states_of(store, read, {key: used(split) for key, split in splits.items()})
    assert set(found["answer"].tolist()) == set(splits)
    for key, split in splits.items():
        assert set(found["split"][found["answer"] == key].tolist()) == {split}
    everyone = dict.fromkeys(whole["answer"].tolist(), used("w"))
    assert set(states_of(store, read, everyone)["split"].tolist()) == {"w"}
    assert len(states_of(store, read, everyone)) == len(whole)


def test_what_is_said_of_an_answer_comes_from_its_data_and_not_from_the_store(store: StateStore) -> None:
    read = [Read(Site(3), 2)]
    key = str(states_of(store, read)["answer"][0])
    found = states_of(store, read, {key: used("w", label="harmful", source="a much longer source than before")})
    assert {name: set(found[name].tolist()) for name in ("split", "label", "source", "prompt_key", "id")} == {
        "split": {"w"},
        "label": {"harmful"},
        "source": {"a much longer source than before"},
        "prompt_key": {"k"},
        "id": {"i"},
    }


def test_what_a_part_says_of_training_becomes_columns(store: StateStore) -> None:
    read = [Read(Site(3), 2)]
    one, other = sorted(set(states_of(store, read)["answer"].tolist()))[:2]
    rules = {one: replace(used("w"), first_depth=4, weight=0.5), other: used("w")}
    found = states_of(store, read, rules)
    of_one = found["answer"] == one
    assert set(found["first_depth"][of_one].tolist()) == {4} and set(found["weight"][of_one].tolist()) == {0.5}
    assert set(found["first_depth"][~of_one].tolist()) == {0} and set(found["weight"][~of_one].tolist()) == {1.0}


def test_a_moved_answer_has_the_key_and_source_of_its_host(store: StateStore) -> None:
    keys = sorted(set(store.read([(Site(2), 2)])["answer"].tolist()))
    said = {key: used("v") for key in keys[1:]} | {keys[0]: replace(used("v"), host_key="h", host_source="chat")}
    checks = states_of(store, [Read(Site(2), 2)], said)
    moved = checks["answer"] == keys[0]
    assert set(checks.host_keys[moved].tolist()) == {"h"} and set(checks["host_source"][moved].tolist()) == {"chat"}
    assert set(checks.host_keys[~moved].tolist()) == {"k"} and set(checks["host_source"][~moved].tolist()) == {"s"}
    assert set(planted(4).host_keys.tolist()) == set(planted(4)["prompt_key"].tolist()), "an older store says nothing"


def test_an_answer_is_used_as_its_recipe_reads_it(store: StateStore) -> None:
    key = str(states_of(store, [Read(Site(3), 2)])["answer"][0])
    assert len(states_of(store, [Read(Site(3), 2)], {key: used("w", reading="other")})) == 0


def test_a_state_that_no_answer_changes_is_no_candidate() -> None:
    manifest = replace(MANIFEST, sites=(Site(0), *SITES))
    with pytest.raises(ConfigError, match=r"layers has 0: at 0\.input_layernorm@2 the state is the same after every"):
        candidates(manifest, {"layers": [0, 3]})
    assert candidates(manifest, {"layers": 0, "tokens": "content"}), (
        "the answer's own last token is another one each time"
    )
    means = replace(manifest, tokens=(2, -25))
    assert candidates(means, {"layers": 0, "tokens": "mean25"}), "and so is what it wrote"
    assert candidates(manifest, {"layers": [[0, 3]]})
