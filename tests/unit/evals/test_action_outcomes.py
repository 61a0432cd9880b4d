"""Calls that a model makes when it is asked for acts: how they are read, and which run under which gate."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anydepth.backends.transformers import TransformersBackend
from anydepth.config import GuardConfig
from anydepth.evals.context import Context
from anydepth.evals.eval_options import EvalOptions
from anydepth.evals.suites import action_fits, action_outcomes
from anydepth.evals.suites.action_sets import Act, acts, asked, noted
from anydepth.guard import Guard
from anydepth.policy import Threshold
from anydepth.templates.call_formats import choose_format
from tests import tiny
from tests.evaluations import random_probe
from tests.unit.evals.tables import measured, one

HERMES = choose_format("hermes", "")
FEW = [act for act in acts() if act.pair < 1]
BY_ID = {act.id: act for act in FEW}


def context(folder: Path, threshold: float = 0.5, before: str = "") -> Context:
    """A run on a tiny model whose chat template has `before` in front."""
    tokenizer = tiny.spelling_tokenizer()
    tokenizer.chat_template = before + tokenizer.chat_template
    model = TransformersBackend(tiny.tiny_model("Llama", tiny.SPELLING), tokenizer)
    probe = random_probe(model, 3, policy=Threshold(threshold))
    options = EvalOptions(quick=True, limit=1, settings={"actions.asked": "1"})
    return Context("actions", model, options, folder, "refusal", given_probe=probe, config=GuardConfig())


def written(act: Act) -> str:
    return f"<tool_call>\n{json.dumps(act.call)}\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Here it is:\n```json\n{}\n```", "no call"),
        ("I would rather not.", "no call"),
        ("{broken {", "no call"),
        ('{"name": "delete_path", "arguments": {"path": "/srv"}}', "another call"),
        ('{"name": 5}', "no call"),
    ],
)
def test_what_an_answer_proposes(text: str, found: str) -> None:
    act, twin = BY_ID["files-0-harmful"], BY_ID["files-0-harmless"]
    assert action_outcomes.read_answer(text, act, twin, HERMES) == found  # pyright: ignore[reportArgumentType]


def test_the_act_counts_before_other_calls_wherever_it_stands() -> None:
    act, twin = BY_ID["files-0-harmful"], BY_ID["files-0-harmless"]
    read: Any = action_outcomes.read_answer
    assert read(f"Well: {written(act)}", act, twin, HERMES) == "the same call"
    assert read(written(twin), act, twin, HERMES) == "its twin's call"
    assert read(written(twin) + written(act), act, twin, HERMES) == "the same call"
    split = choose_format("mistral-args", "")
    assert split is not None
    assert read("Yes. " + split.write(act.tool, act.arguments), act, twin, split) == "the same call"
    assert read("[TOOL_CALLS]other[ARGS]{}", act, twin, split) == "another call"


def test_a_threshold_of_the_other_domains_knows_nothing_of_its_own() -> None:
    chosen = acts()
    scores = {act.id: (0.9 if act.domain == "files" else 0.1) + 0.01 * act.pair + 0.05 * act.harmful for act in chosen}
    halted = action_fits.halted_by_scores(chosen, scores, 0.1)
    assert all(halted[act.id] for act in chosen if act.domain == "files"), "all are above what the others have"
    assert not any(halted[act.id] for act in chosen if act.domain != "files"), "the files' scores are above all limits"
    none = action_fits.halted_by_scores(chosen, dict.fromkeys(scores, 0.5), 0.1)
    assert not any(none.values()), "scores that are all the same halt nothing"


def test_the_share_of_harmless_calls_that_a_threshold_halts_is_kept() -> None:
    chosen = acts()
    scores = {act.id: number / len(chosen) for number, act in enumerate(sorted(chosen, key=lambda act: act.pair))}
    for share in (0.0, 0.1, 0.5):
        for domain in {act.domain for act in chosen}:
            harmless = [scores[act.id] for act in chosen if not act.harmful and act.domain != domain]
            limit = action_fits._limit(harmless, share)
            assert sum(score > limit for score in harmless) == int(share * len(harmless))


def test_a_fit_of_the_other_domains_knows_nothing_of_its_own_labels() -> None:
    chosen = acts()
    draws = np.random.default_rng(0)
    states = np.float32([[10.0 * act.harmful, *draws.standard_normal(3)] for act in chosen])
    halted = action_fits.halted_by_fits(chosen, states, 0.1)
    assert all(halted[act.id] for act in chosen if act.harmful)
    turned = states.copy()
    own = [place for place, act in enumerate(chosen) if act.domain == "files"]
    turned[own, 0] = 10 - turned[own, 0]  # as if the labels of this domain were the other way around
    other = action_fits.halted_by_fits(chosen, turned, 0.1)
    assert [other[chosen[place].id] for place in own] == [not halted[chosen[place].id] for place in own]


def test_which_calls_run() -> None:
    first: Any = {"a": "the same call", "b": "the same call", "c": "no call", "d": "the same call"}
    again: Any = {"a": "the same call", "b": "no call", "d": "its twin's call"}
    halted = {"a": True, "b": True, "c": True, "d": False}
    ran = dict(action_outcomes._ran({"gate": halted}, first, again))
    assert ran == {
        "no gate": {"a": True, "b": True, "c": False, "d": True},
        "every call warned of": {"a": True, "b": False, "c": False, "d": False},
        "gate": {"a": False, "b": False, "c": False, "d": True},
        "gate: a warning": {"a": True, "b": False, "c": False, "d": True},
    }


def test_a_warning_stands_behind_the_call(tmp_path: Path) -> None:
    act, given = FEW[0], context(tmp_path)
    prompt = noted(given, act, asked(act), "NOT RUN")
    text = given.backend.template.words(prompt.ids)
    parts = [text.find(each) for each in (act.request, f"Call {act.tool} with", written(act), "NOT RUN")]
    assert -1 not in parts and parts == sorted(parts) and prompt.prefill == 0


def scripted(given: Context, first: dict[str, str], again: dict[str, str]) -> None:
    """Write what the model is to have answered into the texts of the run."""
    for stage, texts in (("asked", first), ("warned", again)):
        for key, text in texts.items():
            given.texts.write(f"{stage} {key}", {"ids": [], "finish": "stop", "end": 1, "text": text})


def test_figures_are_of_the_calls_that_run(tmp_path: Path) -> None:
    """The harmless acts are proposed; of the harmful ones half, which are given up after a warning."""
    given = context(tmp_path, threshold=0.0)  # the guard halts every call
    made = [act for act in FEW if not act.harmful or act.domain in ("files", "databases", "messages", "payments")]
    first = {act.id: written(act) if act in made else "No." for act in FEW}
    again = {act.id: "No, then." if act.harmful else written(act) for act in made}
    scripted(given, first, again)
    summary = measured(given)

    def ran(how: str, kind: str) -> float | None:
        return one(summary, "ran", how=how, acts=kind).value

    assert [ran("no gate", kind) for kind in ("harmful", "harmless")] == [0.5, 1.0]
    assert [ran("every call warned of", kind) for kind in ("harmful", "harmless")] == [0.0, 1.0]
    assert [ran("the guard's threshold", kind) for kind in ("harmful", "harmless")] == [0.0, 0.0]
    assert [ran("the guard's threshold: a warning", kind) for kind in ("harmful", "harmless")] == [0.0, 1.0]
    figure = one(summary, "answers to a warning", answer="no call", acts="harmful")
    assert (figure.value, figure.answers) == (1.0, 4)
    assert one(summary, "answers without one", answer="no call", acts="harmful").value == 0.5
    assert any(chart.figures == ("ran",) for chart in summary.charts)
    assert any("Asked for 16 acts by name" in note for note in summary.notes)


@pytest.mark.parametrize(("before", "shown"), [("", True), ("{% set tools = none %}", False)])
def test_the_notes_say_whether_the_model_was_shown_the_tool(tmp_path: Path, before: str, shown: bool) -> None:
    given = context(tmp_path, before=before)
    scripted(given, {act.id: "No." for act in FEW}, {})
    notes = " ".join(measured(given).notes)
    assert ("with the tool described" in notes) is shown
    assert ("without a description of the tool" in notes) is not shown


def test_the_gate_reads_the_call_that_is_asked_for(tmp_path: Path) -> None:
    given = context(tmp_path)
    scripted(given, {act.id: "No." for act in FEW}, {})
    measured(given)
    row = next(
        row
        for line in (tmp_path / "records" / "actions.jsonl").read_text().splitlines()
        if (row := json.loads(line)).get("id") == "gates of the acts asked for"
    )
    guard = Guard.from_backend(given.backend, given.probe)
    for act in FEW[:4]:
        found = guard.gate(asked(act), act.call, tools=[act.schema], format="hermes", control=False)
        assert row["scores"][act.id] == pytest.approx(found.score, abs=1e-5)
        assert row["halted"]["the guard's threshold"][act.id] is found.halt


def test_the_model_is_asked_greedily_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = measured(context(tmp_path))
    assert one(summary, "answers without one", answer="no call", acts="harmful").value == 1.0, "random weights"
    assert one(summary, "answers to a warning", answer="no call", acts="harmful").answers == 0
    monkeypatch.setattr("anydepth.evals.context.write_batch", None)
    monkeypatch.setattr(action_outcomes, "states_after", None)
    assert measured(context(tmp_path)).record() == summary.record()
