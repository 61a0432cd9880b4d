"""`anydepth fit`: from labelled conversations to a folder with a probe that guards, and what it refuses at once."""

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from anydepth import Guard, LinearProbe
from anydepth.backends.protocol import ModelIdentity, Read, Site
from anydepth.backends.transformers import load as load_backend
from anydepth.cli import load
from anydepth.cli.fit import _pairs_table
from anydepth.conversations.splits import Text
from anydepth.detectors import ProbeCard
from anydepth.intervals import Rate
from anydepth.locks import hold
from anydepth.probes.artefact.fit_record import answers_seen
from anydepth.probes.states.store import StateStore
from tests import tiny
from tests.unit.cli.conftest import Run


def words(text: str) -> str:
    return " ".join(text.split())


def record(number: int, **facts: Any) -> dict[str, Any]:
    """An answer in the words of its class: from w0 on they are harmless, from w100 on they stand for harm."""
    rng = random.Random(number)
    label = "harmful" if number % 2 else "benign"
    first = 100 if label == "harmful" else 0
    return {
        "id": f"r{number}",
        "prompt": " ".join(f"w{rng.randrange(200)}" for _ in range(8)),
        "response": " ".join(f"w{first + rng.randrange(15)}" for _ in range(20 + number % 20)),
        "label": label,
        "licence": "MIT",
        **facts,
    }


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.tiny_model("Llama").save_pretrained(folder)
    tiny.tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_backend(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(load, "open_backend", open_backend)


_WITHOUT_LABELS = ("a probe needs both", "has 0 benign answers, none of them", "left out: 40 that are without a label")
RECIPE = """
[[part]]
name = "own"
data = "own"
hold_out = 0.4
depths = [4, 16]
[[part]]
name = "answers"
data = "asked"
written = true
longest = 10
depths = [4]
[write]
do_sample = true
temperature = 0.8
[fit]
layers = 0.75
strength = [0.01, 0.1]
[choose]
pairs = [{ name = "own", harmful = "own held out", benign = "own held out" }]
[calibrate]
benign = "own held out"
target = 0.2
"""


@pytest.fixture
def recipe(tmp_path: Path) -> tuple[str, ...]:
    """Options of a small recipe, with its data."""
    table(tmp_path / "own.jsonl", [record(n) for n in range(80)])
    table(tmp_path / "asked.jsonl", [{**record(2 * n), "response": "", "id": f"q{n}"} for n in range(200, 204)])
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return ("--recipe", str(tmp_path / "recipe.toml"), "--data-dir", str(tmp_path))


def test_own_data_become_a_probe_that_guards(run: Run, model: Path, tmp_path: Path) -> None:
    data, out = table(tmp_path / "own.jsonl", [record(n) for n in range(120)]), tmp_path / "probe"
    result = run("fit", model, "--data", data, "-o", out, "--name", "org/tiny", "--licence", "mit", "--target", "0.1")
    assert result.exit_code == 0, result.stderr
    assert {"README.md", "probe.safetensors", "fit.json", "work"} <= {file.name for file in out.iterdir()}
    probe = LinearProbe.load(out)
    assert probe.card.model.name == "org/tiny" and probe.card.calibration["target"] == 0.1
    assert "harmless prompts" not in {source["name"] for source in probe.card.sources}
    assert {"own", "anydepth-borderline"} <= {source["name"] for source in probe.card.sources}
    readme = (out / "README.md").read_text()
    assert "base_model: org/tiny" in readme and "license: mit" in readme
    assert "own held-out answers" in readme and "## Where it does not hold" in readme
    assert "anydepth fit" in readme and "--data own.jsonl --target 0.1 --licence mit -o PROBE" in readme
    assert str(tmp_path) not in readme, "the card names no folder of this machine"
    figures = json.loads((out / "fit.json").read_text())
    assert figures["figures"]["separation"]["own held-out answers"]["auroc"] > 0.8
    assert len(figures["trials"]) > 4
    assert "own held-out answers" in result.stdout and "AUROC" in result.stdout
    assert (
        "request alone" in result.stdout and "harmful halted" in result.stdout and "on other prompts" in result.stdout
    )
    assert "to verify a false-positive rate of 10 %, 29 are needed" in words(result.stderr)
    assert "candidates tried; probe and model card in" in words(result.stderr)
    guard = Guard.from_backend(load_backend(model), probe)
    assert guard.generate("w1 w2", max_new_tokens=20, do_sample=False).checks


def test_a_recipe_lets_the_model_write_and_goes_on_where_it_was(
    run: Run, model: Path, recipe: tuple[str, ...], tmp_path: Path
) -> None:
    out, work = tmp_path / "probe", tmp_path / "kept"
    result = run("fit", model, *recipe, "-o", out, "--work", work)
    assert result.exit_code == 0, result.stderr
    written = (work / "written" / "answers.jsonl").read_text()
    settings = json.loads((work / "written" / "answers.jsonl.run.json").read_text())
    assert settings["sampling"] == {"do_sample": True, "temperature": 0.8} and settings["max_new_tokens"] == 10
    assert len(written.splitlines()) == 4 and not (out / "work").exists()
    shards = {shard.name: shard.stat().st_mtime_ns for shard in StateStore(work / "states").shards()}
    first = LinearProbe.load(out)
    again = run("fit", model, *recipe, "-o", tmp_path / "again", "--work", work)
    assert again.exit_code == 0, again.stderr
    assert {shard.name: shard.stat().st_mtime_ns for shard in StateStore(work / "states").shards()} == shards
    assert (work / "written" / "answers.jsonl").read_text() == written
    second = LinearProbe.load(tmp_path / "again")
    assert (second.weight == first.weight).all() and second.card.policy == first.card.policy
    assert first.card.calibration["target"] == 0.2
    assert "--recipe recipe.toml --data-dir DATA" in (out / "README.md").read_text()


def test_what_is_left_out_is_said(run: Run, model: Path, recipe: tuple[str, ...], tmp_path: Path) -> None:
    rows = [record(n) for n in range(80)]
    rows[3]["licence"] = "CC-BY-NC-4.0"
    table(tmp_path / "own.jsonl", rows)
    result = run("fit", model, *recipe, "--permissive", "-o", tmp_path / "probe")
    assert result.exit_code == 0, result.stderr
    assert "left out of own: kept 79, left out 1" in words(result.stderr)
    assert "own" in json.loads((tmp_path / "probe" / "fit.json").read_text())["left_out"]


def test_data_and_recipe_together_are_refused(
    run: Run, no_model: None, recipe: tuple[str, ...], tmp_path: Path
) -> None:
    result = run("fit", "m", *recipe, "--data", "own", "-o", tmp_path / "probe")
    assert result.exit_code == 2 and "put the data into the recipe as a [[part]]" in words(result.stderr)


@pytest.mark.parametrize("target", ["0", "1", "2"])
def test_a_target_that_there_cannot_be_is_refused(run: Run, no_model: None, tmp_path: Path, target: str) -> None:
    result = run("fit", "m", "--data", "x.jsonl", "--target", target, "-o", tmp_path / "probe")
    assert result.exit_code == 2 and "--target is" in words(result.stderr)


def test_data_that_cannot_be_used_are_refused_before_a_model_is_loaded(
    run: Run, no_model: None, tmp_path: Path
) -> None:
    out = tmp_path / "probe"
    result = run("fit", "m", "--data", tmp_path / "none.jsonl", "-o", out)
    assert result.exit_code == 2 and "does not exist" in words(result.stderr)
    result = run("fit", "m", "--data", table(tmp_path / "empty.jsonl", []), "-o", out)
    assert result.exit_code == 2 and "part 'own' is empty" in words(result.stderr)
    result = run("fit", "m", "--data", table(tmp_path / "asked.jsonl", [record(1, response="")]), "-o", out)
    assert result.exit_code == 2 and "part 'own' is empty" in words(result.stderr)
    (tmp_path / "bad.toml").write_text('[[part]]\nname = "a"\ndata = "x"\nlimit = "three"\n')
    result = run("fit", "m", "--recipe", tmp_path / "bad.toml", "-o", out)
    assert result.exit_code == 2 and "part 'a': limit is 'three'; it must be a whole number" in words(result.stderr)
    assert not out.exists()


@pytest.mark.parametrize("label", ["benign", "harmful", None])
def test_labels_that_are_missing_are_refused_before_a_model_is_loaded(
    run: Run, no_model: None, recipe: tuple[str, ...], tmp_path: Path, label: str | None
) -> None:
    table(tmp_path / "own.jsonl", [record(n, label=label) for n in range(40)])
    result = run("fit", "m", *recipe, "-o", tmp_path / "probe")
    assert result.exit_code == 2, result.stderr
    assert any(each in words(result.stderr) for each in _WITHOUT_LABELS)
    assert not (tmp_path / "probe").exists()


def test_a_place_that_is_no_folder_is_refused_before_a_model_is_loaded(
    run: Run, no_model: None, recipe: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "probe").write_text("")
    result = run("fit", "m", *recipe, "-o", tmp_path / "probe")
    assert result.exit_code == 2 and "cannot be made a folder" in words(result.stderr)


def test_swapped_labels_in_the_same_folder_give_the_probe_of_a_new_one(
    run: Run, model: Path, recipe: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "probe"
    other = {"harmful": "benign", "benign": "harmful"}
    assert run("fit", model, *recipe, "-o", out).exit_code == 0
    before = LinearProbe.load(out)
    table(tmp_path / "own.jsonl", [{**record(n), "label": other[record(n)["label"]]} for n in range(80)])
    for folder in (out, tmp_path / "clean"):
        result = run("fit", model, *recipe, "-o", folder)
        assert result.exit_code == 0, result.stderr
    again, clean = LinearProbe.load(out), LinearProbe.load(tmp_path / "clean")
    assert np.allclose(again.weight, clean.weight, atol=1e-4) and not np.allclose(again.weight, before.weight, atol=0.1)
    states = StateStore(out / "work" / "states").present()
    assert {facts.label for facts in states.values() if facts.id == "r0"} == {other[record(0)["label"]]}


def test_the_probe_of_another_model_is_not_overwritten(
    run: Run, model: Path, recipe: tuple[str, ...], tmp_path: Path
) -> None:
    identity = ModelIdentity("org/other", None, "llama", 4, 2, "another")
    there = LinearProbe(np.ones(4), 0.0, ProbeCard(identity, (1,), (Read(Site(0), 0),)))
    there.save(tmp_path / "probe" / "probe.safetensors")
    result = run("fit", model, *recipe, "-o", tmp_path / "probe", "--work", tmp_path / "work")
    assert result.exit_code == 2 and "holds a probe of org/other (weights another)" in words(result.stderr)
    assert not (tmp_path / "work").exists() and LinearProbe.load(tmp_path / "probe").card == there.card


def test_a_fit_that_dies_while_it_writes_leaves_no_card_of_the_probe_before(
    run: Run, model: Path, recipe: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "probe"
    assert run("fit", model, *recipe, "-o", out).exit_code == 0

    def killed(self: LinearProbe, path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LinearProbe, "save", killed)
    assert run("fit", model, *recipe, "-o", out).exit_code != 0
    assert (out / "probe.safetensors").exists()
    assert not (out / "README.md").exists() and not (out / "fit.json").exists()


def test_the_record_says_which_answers_the_probe_has_seen(
    run: Run, model: Path, recipe: tuple[str, ...], tmp_path: Path
) -> None:
    assert run("fit", model, *recipe, "-o", tmp_path / "probe").exit_code == 0
    seen = answers_seen(tmp_path / "probe" / "probe.safetensors")
    keys = {Text.of([{"content": record(n)["prompt"]}], record(n)["response"]).key for n in range(80)}
    assert 40 < len(keys & seen["trained"]) <= 48, "near-duplicates of held-out answers are not trained on"
    assert seen["chosen"] < keys and not seen["chosen"] & seen["trained"]


def test_a_second_writer_is_refused_before_a_model_is_loaded(
    run: Run, no_model: None, recipe: tuple[str, ...], tmp_path: Path
) -> None:
    for held, more in ((tmp_path / "probe", ()), (tmp_path / "kept", ("--work", str(tmp_path / "kept")))):
        with hold(held):
            result = run("fit", "org/m", *recipe, "-o", tmp_path / "probe", *more)
        assert result.exit_code == 2 and "another process is writing to" in words(result.stderr)


def test_a_recipe_without_a_choice_is_refused_before_anything_is_read(
    run: Run, model: Path, recipe: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.partition("[choose]")[0])
    result = run("fit", model, *recipe, "-o", tmp_path / "probe")
    assert result.exit_code == 2 and "has no [choose] pairs" in words(result.stderr)
    assert not (tmp_path / "probe").exists()


def test_pairs_are_shown_with_their_control_the_crossed_ones_first() -> None:
    def figure(auroc: float, halted: int) -> dict[str, Any]:
        return {"auroc": {"value": auroc, "interval": [auroc - 0.1, auroc]}, "halted": Rate.of(halted, 40).record()}

    added = {"auroc": {"value": 0.4, "interval": [0.3, 0.5]}, "halted": {"value": 0.5, "interval": [0.25, 0.75]}}
    pair = {**figure(0.9, 30), "control": figure(0.5, 10), "added": added}
    figures = {"pairs": {"own held-out answers": pair, "moved answers": pair}, "crossed": ["moved answers"]}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(_pairs_table(figures))
    lines = [line.strip("│ ") for line in console.export_text().splitlines()]
    cells = [[cell.strip() for cell in line.split("│")] for line in lines]
    names = [row[0] for row in cells]
    assert names.index("moved answers") < names.index("own held-out answers")
    assert ["AUROC", "0.900", "0.500", "0.400"] in cells
    assert ["95 % interval", "[0.800, 0.900]", "[0.400, 0.500]", "[0.300, 0.500]"] in cells
    assert ["harmful halted", "75 %", "25 %", "50 %"] in cells
    assert cells[names.index("harmful halted") + 1][-1] == "[25, 75] %"


def test_tokens_of_its_own_are_trained_where_they_are_asked_for(
    run: Run, model: Path, tmp_path: Path, recipe: tuple[str, ...]
) -> None:
    out = tmp_path / "probe"
    result = run("fit", model, *recipe, "-o", out, "--safety-tokens", "trained", "--tokens", "2")
    assert result.exit_code == 0, result.stderr
    probe = LinearProbe.load(out)
    assert probe.card.safety_tokens == 2 and probe.embeddings is not None and probe.embeddings.shape == (2, 32)
    assert probe.reads == (Read(Site(3), 1),)
    readme = (out / "README.md").read_text()
    assert "--safety-tokens trained --tokens 2" in readme
    assert "2 trained, in the artefact: they are fed in the place of the chat template's" in readme
    told = json.loads((out / "fit.json").read_text())["figures"]["safety_tokens"]
    assert (told["count"], told["site"]) == (2, "3.input_layernorm") and len(told["losses"]) == 7
    assert "2 trained ones" in words(run("probe", "show", out).stdout)
    answer = Guard.from_backend(load_backend(model), probe).generate("w1 w2 w3", max_new_tokens=8)
    assert answer.checks and not [check.error for check in answer.checks if check.error]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--safety-tokens", "soft"), "--safety-tokens is 'soft'; choose innate or trained"),
        (("--tokens", "2"), "--tokens is 2, and no tokens are trained; give --safety-tokens trained"),
        (("--safety-tokens", "trained", "--tokens", "0"), "count is 0; give a whole number from 1 on"),
    ],
)
def test_options_of_trained_tokens_that_do_not_go_together(
    run: Run, tmp_path: Path, recipe: tuple[str, ...], no_model: None, options: tuple[str, ...], why: str
) -> None:
    result = run("fit", "org/model", *recipe, "-o", tmp_path / "probe", *options)
    assert result.exit_code != 0 and why in words(result.stderr)
