"""Pairs of tool calls: what they share, and that the figures are those of the gate's own verdicts."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anydepth.backends.transformers import TransformersBackend
from anydepth.config import GuardConfig
from anydepth.errors import ConfigError
from anydepth.evals.context import Context
from anydepth.evals.eval_options import EvalOptions
from anydepth.evals.figure import Summary
from anydepth.evals.suites import actions
from anydepth.guard import Guard
from anydepth.policy import KofN, Threshold
from tests import tiny
from tests.evaluations import random_probe
from tests.unit.evals.tables import measured, one


def backend() -> TransformersBackend:
    return TransformersBackend(tiny.tiny_model("Llama", tiny.SPELLING), tiny.spelling_tokenizer())


def context(folder: Path, *, threshold: float = 0.5, policy: Any = None, **options: Any) -> Context:
    model = backend()
    probe = random_probe(model, 3, policy=policy or Threshold(threshold))
    given = EvalOptions(**{"quick": True, "limit": 2, **options})
    return Context("actions", model, given, folder, "refusal", given_probe=probe, config=GuardConfig())


@dataclass(frozen=True)
class Measured:
    context: Context
    summary: Summary
    folder: Path


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("actions")
    given = context(folder)
    return Measured(given, measured(given), folder)


def test_the_two_of_a_pair_share_everything_but_the_act() -> None:
    every = {act.id: act for act in actions.acts()}
    assert len(every) == len(actions.acts()) == 2 * 8 * 7
    for act in every.values():
        twin = every[act.twin]
        assert twin.twin == act.id and twin.harmful is not act.harmful
        assert (act.domain, act.pair, act.system, act.request, act.tool) == (
            twin.domain, twin.pair, twin.system, twin.request, twin.tool
        )  # fmt: skip
        assert list(act.arguments) == list(twin.arguments) and act.arguments != twin.arguments


def test_domain_and_harm_are_independent() -> None:
    counted = Counter((act.domain, act.harmful) for act in actions.acts())
    assert len({domain for domain, _ in counted}) >= 6 and set(counted.values()) == {7}
    assert len({act.request for act in actions.acts()}) == len(actions.acts()) // 2, "a request occurs in one pair"


def test_the_length_of_the_argument_tells_nothing() -> None:
    lengths = {
        kind: [len(*a.arguments.values()) for a in actions.acts() if a.harmful is kind] for kind in (True, False)
    }
    pairs = [(one, other) for one in lengths[True] for other in lengths[False]]
    assert 0.45 < sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs) < 0.55
    assert max(abs(a - b) for a, b in zip(lengths[True], lengths[False], strict=True)) <= 5


def test_figures_are_those_of_the_gates_verdicts(seen: Measured) -> None:
    given, summary = seen.context, seen.summary
    guard = Guard.from_backend(given.backend, given.probe)
    chosen = [act for act in actions.acts() if act.pair < 2]
    found = {
        act.id: guard.gate(
            f"{act.system}\n\n{act.request}", {"name": act.tool, "arguments": act.arguments}, format="hermes"
        )
        for act in chosen
    }
    for harmful, name in ((True, "halted"), (False, "false alarms")):
        halted = [found[act.id].halt for act in chosen if act.harmful is harmful]
        figure = one(summary, name, arm="probe")
        assert figure.value == pytest.approx(sum(halted) / len(halted)) and figure.answers == len(chosen) // 2
    higher = [found[act.id].score > found[act.twin].score for act in chosen if act.harmful]
    assert one(summary, "harmful one scores higher", arm="probe").value == pytest.approx(sum(higher) / len(higher))
    wins = [
        (found[a.id].score > found[b.id].score) + 0.5 * (found[a.id].score == found[b.id].score)
        for a in chosen for b in chosen if a.harmful and not b.harmful
    ]  # fmt: skip
    assert one(summary, "auroc", arm="probe").value == pytest.approx(sum(wins) / len(wins))


def test_the_controls_say_nothing_of_harm(seen: Measured) -> None:
    summary = seen.summary
    assert one(summary, "auroc before the call", arm="probe").value == pytest.approx(0.5)
    assert one(summary, "auroc by length alone", arm="probe").answers == 32
    domains = {figure.group["domain"] for figure in summary.figures if figure.name == "auroc by domain"}
    left_out = [f for f in summary.figures if f.name == "auroc without the domain" and f.group["arm"] == "probe"]
    assert len(domains) == len(left_out) == 8 and {figure.answers for figure in left_out} == {28}


def test_words_of_other_domains_are_a_control() -> None:
    chosen = [replace(act, arguments={"a": f"same {'secret' if act.harmful else 'plain'}"}) for act in actions.acts()]
    scores = actions._by_words(chosen)
    assert all(scores[act.id] > scores[act.twin] for act in chosen if act.harmful), "words that tell are found"
    alone = [replace(act, arguments={"a": f"{act.domain}{act.harmful}"}) for act in chosen]
    assert len(set(actions._by_words(alone).values())) <= 8, "words of the left-out domain are not known"


def test_a_probe_is_fitted_for_each_domain_that_is_left_out(seen: Measured) -> None:
    figure = one(seen.summary, "auroc within domains", arm="fitted on the other domains")
    assert figure.answers == 16 and figure.interval is not None
    rows = [json.loads(line) for line in (seen.folder / "records" / "actions.jsonl").read_text().splitlines()]
    (fitted,) = [row for row in rows if row.get("id") == "fitted on the other domains"]
    assert set(fitted["logits"]) == {act.id for act in actions.acts() if act.pair < 2}


def test_a_second_run_makes_no_reading_again(seen: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "gate_calls", None)
    monkeypatch.setattr(actions, "states_after", None)
    assert measured(context(seen.folder)).record() == seen.summary.record()
    published = (seen.folder / "records" / "actions.jsonl").read_text()
    assert not any(value in published for act in actions.acts() for value in (act.request, *act.arguments.values()))


def test_a_policy_that_one_reading_cannot_halt_gives_way_to_the_papers(tmp_path: Path) -> None:
    notes = " ".join(measured(context(tmp_path, policy=KofN(2, 3, 0.9), limit=1)).notes)
    assert "judged alone by {'name': 'threshold', 'threshold': 0.5}" in notes


def test_the_summary_says_where_the_words_tell_as_much(seen: Measured) -> None:
    within = {f.group["arm"]: f.value for f in seen.summary.figures if f.name == "auroc within domains"}
    said = [limit for limit in seen.summary.limits if "than its words do" in limit]
    assert {limit.partition(" tells")[0] for limit in said} == {
        arm for arm, value in within.items() if arm != "words alone" and value <= within["words alone"] + 0.005
    }


def test_arms(tmp_path: Path) -> None:
    summary = measured(context(tmp_path / "both", arms=("base", "probe", "rethink"), limit=1))
    assert {figure.group["arm"] for figure in summary.figures if figure.name == "auroc"} == {
        "probe", "rethink", "words alone", "fitted on the other domains"
    }  # fmt: skip
    with pytest.raises(ConfigError, match="suite actions has no arm 'no-header'; choose from probe, rethink"):
        measured(context(tmp_path / "none", arms=("no-header",)))


def test_what_the_fitted_probe_scores_it_has_not_seen(seen: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A domain whose labels are turned around gets the same logits: its own labels are not used."""
    chosen = [act for act in actions.acts() if act.pair < 2]
    numbers = {act.id: np.float32([[act.harmful, len(act.request), len(str(act.arguments))]]) for act in chosen}
    monkeypatch.setattr(actions, "states_after", lambda context, call: numbers[call])
    calls: Any = {act.id: act.id for act in chosen}
    first = actions._left_out(seen.context, chosen, calls)
    turned = [replace(act, harmful=not act.harmful) if act.domain == "files" else act for act in chosen]
    second = actions._left_out(seen.context, turned, calls)
    assert all(first[act.id] == second[act.id] for act in chosen if act.domain == "files")
    assert any(first[act.id] != second[act.id] for act in chosen if act.domain != "files")
