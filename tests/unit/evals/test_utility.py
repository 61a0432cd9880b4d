"""Benign questions with and without the guard, on a tiny model whose answers are the references."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from anydepth.detectors import LinearProbe
from anydepth.errors import ConfigError
from anydepth.evals.context import Context
from anydepth.evals.figure import Figure, Summary
from anydepth.evals.instruments.harness import TASKS
from anydepth.evals.suites import utility
from anydepth.guard import Guard
from tests.conversations import words
from tests.unit.evals import tables

TOKENS = 24
SETTINGS = {"utility.new-tokens": str(TOKENS)}
COUNT = 8


def asked(prompt: str) -> str:
    """What the model is asked where the reference is a text."""
    return f"{prompt}\n\n{TASKS[-1].ask}"


def answered(guard: Guard, prompt: str) -> Any:
    return guard.generate(asked(prompt), max_new_tokens=TOKENS, do_sample=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Questions of which every second has the model's own answer as its reference."""
    guard = Guard.from_backend(tables.backend(), tables.probe(1.0))
    rows = []
    for number in range(COUNT):
        prompt = words(13 * number, 4)
        own = answered(guard, prompt).text.split("\n")[0]
        rows.append({"prompt": prompt, "answer": own if number % 2 else "other", "source": f"bbh-{number % 2}"})
    rows.append({"prompt": "w3 w4", "answer": "add", "source": "humaneval"})
    tables.table(tmp_path / "data", "prompts_utility", rows)
    return tmp_path / "data"


@pytest.fixture
def probe(data: Path) -> LinearProbe:
    """A probe that halts some of the answers, at different depths; no score is near its threshold."""
    guard = Guard.from_backend(tables.backend(), tables.probe(1.0), schedule=tables.CONFIG.schedule, release="monitor")
    peaks = sorted(answered(guard, words(13 * number, 4)).verdict.score for number in range(COUNT))
    below, above = max(itertools.pairwise(peaks[1:-1]), key=lambda pair: pair[1] - pair[0])
    assert above - below > 1e-4, "a batch and a single row may differ in the last digits"
    return tables.probe((below + above) / 2)


def run(folder: Path, data: Path, probe: LinearProbe | None = None, **options: Any) -> Summary:
    context = tables.context(
        "utility", folder, data, probe=probe, settings=SETTINGS, **{"arms": (), "limit": COUNT, **options}
    )
    return finished(context)


def finished(context: Context) -> Summary:
    try:
        return utility.run(context)
    finally:
        context.close()


def one(summary: Summary, name: str, arm: str = "probe", source: str = "bbh") -> Figure:
    (found,) = [f for f in summary.figures if f.name == name and f.group == {"source": source, "arm": arm}]
    return found


def test_only_halted_answers_change_and_count_as_wrong(tmp_path: Path, data: Path, probe: LinearProbe) -> None:
    summary = run(tmp_path / "run", data, probe)
    guard = Guard.from_backend(tables.backend(), probe, schedule=tables.CONFIG.schedule)
    halted = [answered(guard, words(13 * number, 4)).halted for number in range(COUNT)]
    assert 0 < sum(halted) < COUNT
    own = [number % 2 == 1 for number in range(COUNT)]
    assert any(right and halt for right, halt in zip(own, halted, strict=True))
    assert one(summary, "accuracy", "base").value == sum(own) / COUNT
    kept = [right and not halt for right, halt in zip(own, halted, strict=True)]
    assert one(summary, "accuracy").value == sum(kept) / COUNT
    assert one(summary, "halted").value == one(summary, "changed").value == sum(halted) / COUNT
    assert one(summary, "changed, not halted").value == 0
    assert one(summary, "changed, not halted").answers == COUNT - sum(halted)
    assert one(summary, "difference").value == pytest.approx((sum(kept) - sum(own)) / COUNT)
    assert one(summary, "accuracy", source="all").value == one(summary, "accuracy").value
    assert any("the accuracy is" in limit for limit in summary.limits)
    assert any(note.startswith("humaneval: left out (1 questions)") for note in summary.notes)


def test_a_guard_that_never_halts_changes_nothing(tmp_path: Path, data: Path) -> None:
    summary = run(tmp_path / "run", data, tables.probe(1.0))
    assert one(summary, "difference").value == one(summary, "changed").value == 0
    assert summary.limits == ()


def test_a_changed_answer_that_was_not_halted_is_told(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(utility, "_same", lambda answer, bare: False)
    summary = run(tmp_path / "run", data, tables.probe(1.0))
    assert one(summary, "changed, not halted").value == 1
    assert "100.0% of the answers that probe did not halt differ from the bare model's" in summary.limits[0]


def test_a_second_run_makes_nothing_and_a_broken_one_goes_on(
    tmp_path: Path, data: Path, probe: LinearProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path / "run", data, probe)
    records, texts = (tmp_path / "run" / kind / "utility.jsonl" for kind in ("records", "texts"))
    for path in (records, texts):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:5]) + lines[-1][:7])
    assert run(tmp_path / "run", data, probe).record() == first.record()

    def used(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was asked again")

    monkeypatch.setattr(tables.backend(), "open", used)
    assert run(tmp_path / "run", data, probe).record() == first.record()


def test_records_hold_no_text(tmp_path: Path, data: Path) -> None:
    summary = run(tmp_path / "run", data)
    published = (tmp_path / "run" / "records" / "utility.jsonl").read_text() + json.dumps(summary.record())
    assert "w1" not in published


def test_what_is_missing_is_named(tmp_path: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="self-defence cannot guard an answer while it is written"):
        run(tmp_path / "one", data, arms=("self-defence",))
    tables.table(data, "prompts_utility", [{"prompt": "w1", "answer": "add", "source": "humaneval"}])
    with pytest.raises(ConfigError, match="no question of GSM8K, MATH, BBH or MMLU"):
        run(tmp_path / "two", data)
    tables.table(data, "prompts_utility", [{"prompt": "w1", "source": "gsm8k"}])
    with pytest.raises(ConfigError, match="has no column `answer`"):
        run(tmp_path / "three", data)
