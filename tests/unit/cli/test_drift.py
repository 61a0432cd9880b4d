"""`anydepth probe drift`: two models read the same answers, and the card is told the difference."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from anydepth.backends.protocol import ModelIdentity, Read, Site
from anydepth.cli import load
from anydepth.cli.options import GuardOptions, ModelOptions
from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.probes.artefact.modelcard import README, describes, write_folder
from anydepth.types import ScanResult
from tests.unit.cli.conftest import Run, checks_of, verdict_of

pytest.importorskip("jinja2")
pytest.importorskip("scipy")

FOUR = {"quant_method": "awq", "bits": 4}
SCORES = {"plain": {"bad": 0.9, "worse": 0.7, "good": 0.1}, "four": {"bad": 0.8, "worse": 0.4, "good": 0.2}}


class Guarding:
    """A guard whose scores depend on the model that was opened."""

    def __init__(self, model: ModelOptions) -> None:
        self.model = model
        self.backend: Any = SimpleNamespace(
            quantization_config=FOUR if model.model == "four" else None, adapter=model.adapter is not None
        )

    def scan(self, messages: Any, answer: str) -> ScanResult:
        checks = checks_of((0.0, SCORES[self.model.model][answer]))
        return ScanResult(checks, verdict_of(checks, 0.5))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    card = ProbeCard(ModelIdentity("org/tiny", None, "llama", 4, 6, "f00d"), (7, 8, 9), (Read(Site(3), 1),))
    return write_folder(tmp_path / "probe", LinearProbe(np.arange(4.0), 0.5, card), {}, [], "anydepth fit X")


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    labels = {"bad": "harmful", "worse": "harmful", "good": "benign"}
    rows = [{"id": n, "prompt": n, "response": n, "label": label, "source": "here"} for n, label in labels.items()]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ModelOptions, GuardOptions]]:
    found: list[tuple[ModelOptions, GuardOptions]] = []

    def open_guard(model: ModelOptions, options: GuardOptions) -> Guarding:
        found.append((model, options))
        return Guarding(model)

    monkeypatch.setattr(load, "open_guard", open_guard)
    return found


def test_the_card_and_the_readme_are_told(run: Run, folder: Path, answers: Path, opened: list[Any]) -> None:
    result = run("probe", "drift", folder, "--model", "plain", "--altered", "four", "--answers", answers)
    assert result.exit_code == 0, result.stderr
    assert [model.model for model, _ in opened] == ["plain", "four"]
    assert {options.probe for _, options in opened} == {folder / "probe.safetensors"}
    new = LinearProbe.load(folder)
    (record,) = new.card.drift
    assert (record["weights"], record["kind"], record["answers"]) == ("4-bit (awq)", "4-bit", 3)
    harmful = record["sides"]["harmful"]
    assert (harmful["before"], harmful["halted"], harmful["difference"]) == (2, 1, -0.5)
    assert record["score_difference"]["largest"] == pytest.approx(0.3)
    assert list(record["sets"]) == ["here"]
    assert "| 4-bit (awq) | 1 of 2 (was 2) | 0 of 1 (was 0) | -50 (" in (folder / README).read_text()
    assert describes(folder / README, new)
    for text in (result.stdout, run("probe", "show", folder).stdout):
        assert "4-bit (awq)" in text and "1 of 2 (was 2)" in " ".join(text.split())


def test_an_adapter_is_measured_on_the_model_itself(
    run: Run, folder: Path, answers: Path, opened: list[Any], tmp_path: Path
) -> None:
    out = tmp_path / "new.safetensors"
    asked = ("--model", "plain", "--adapter", "lora", "--answers", answers, "-o", out, "--json")
    result = run("probe", "drift", folder, *asked)
    assert result.exit_code == 0, result.stderr
    assert [(model.model, model.adapter) for model, _ in opened] == [("plain", None), ("plain", "lora")]
    assert json.loads(result.stdout)["drift"]["verdicts_changed"]["halted"] == 0
    assert LinearProbe.load(out).card.drift[0]["kind"] == "adapter"
    assert LinearProbe.load(folder).card.drift == ()


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing altered": (("--model", "plain"), "nothing is altered; give the quantised checkpoint with --altered"),
    "not quantised": (("--model", "plain", "--altered", "plain"), "--altered plain is neither quantised nor"),
    "the first is altered": (("--model", "four", "--altered", "plain"), "--model four is altered itself: 4-bit (awq)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_measures_nothing_is_refused(run: Run, folder: Path, answers: Path, case: str) -> None:
    options, message = REFUSED[case]
    result = run("probe", "drift", folder, "--answers", answers, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert LinearProbe.load(folder).card.drift == ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "x", "prompt": "p", "response": "r"}, "line 1: there is no label; give harmful or benign"),
        ({"id": "x", "prompt": "p", "response": "r", "label": "harmful"}, "has no benign answers"),
        ({"id": "x", "prompt": "p"}, 'line 1: "response" is missing'),
    ],
)
def test_answers_without_labels_are_refused(
    run: Run, folder: Path, tmp_path: Path, row: dict[str, str], message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    result = run("probe", "drift", folder, "--model", "plain", "--altered", "four", "--answers", path)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
