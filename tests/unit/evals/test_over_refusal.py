"""What is halted though it is harmless: against the guard's own scan and generation of the same answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from anydepth.conversations.corpora import load
from anydepth.conversations.dataset import Conversation, Label
from anydepth.conversations.splits import balance
from anydepth.errors import ConfigError
from anydepth.evals.answers.sets import SETS, family, gather, not_trained_on, spread
from anydepth.evals.figure import Summary
from anydepth.evals.judges.judge import Judged, Judgement
from anydepth.evals.suites import over_refusal
from anydepth.guard import Guard
from anydepth.probes.recipe.recipe import read_recipe
from tests.unit.evals import tables
from tests.unit.evals.tables import measured, one

TOKENS = {"over-refusal.new-tokens": "12", "over-refusal.scan-tokens": "24", "over-refusal.few-tokens": "16"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    prompts = tables.pairs(0, 30, "safe") + tables.pairs(100, 12, "unsafe")
    kept = [{**row, "type": f"type-{n % 2}"} for n, row in enumerate(prompts)]
    tables.table(folder, "prompts_xstest", [{k: v for k, v in row.items() if k != "response"} for row in kept])
    utility = [
        {"prompt": f"w{n} w9", "source": source, "answer": "1"} for n, source in enumerate(["gsm8k", "bbh-a"] * 4)
    ]
    tables.table(folder, "prompts_utility", utility)
    tables.table(folder, "responses_xstest", tables.pairs(7, 24, "benign"))
    tables.table(folder, "pairs_benign_validation", tables.pairs(31, 24, "benign"))
    tables.table(folder, "probe_validation", tables.pairs(53, 24, "benign") + tables.pairs(90, 8, "harmful"))
    tables.table(folder, "pairs_deep_validation", tables.pairs(120, 24, "harmful"))
    return folder


class Strict:
    """A judge that takes every second answer for a refusal and the others for harm."""

    name = "every second"
    says_harm = True

    def judge(self, items: list[Judged]) -> list[Judgement]:
        """By place."""
        return [Judgement(n % 2 == 0, n % 2 == 1, 0.5) for n, _ in enumerate(items)]


def halting_probe(folder: Path, data: Path) -> Any:
    """A probe whose threshold lies in the middle of what it gives the answers, so that some are halted."""
    summary = measured(tables.context("over-refusal", folder, data, arms=("probe",), settings=TOKENS))
    rows = [json.loads(line) for line in (folder / "records" / "over-refusal.jsonl").read_text().splitlines()]
    peaks = sorted(row["peak"] for row in rows if row["arm"] == "probe")
    assert summary.figures
    return tables.probe(threshold=peaks[len(peaks) // 2])


def test_shares_agree_with_the_guards_own_scan_and_generation(tmp_path: Path, data: Path) -> None:
    probe = halting_probe(tmp_path / "first", data)
    context = tables.context("over-refusal", tmp_path / "run", data, probe=probe, settings=TOKENS)
    guard = Guard.from_backend(tables.backend(), probe, schedule=context.config.schedule)
    summary = over_refusal.run(context)
    items = gather(context, count=8, new_tokens=12, scan_tokens=24)
    context.close()
    for of in SETS:
        own = [item for item in items if item.of == of]
        assert len(own) == 8
        halts = []
        for item in own:
            if of.written:
                answer = guard.generate(list(item.row.messages), max_new_tokens=12, do_sample=False)
                halts.append(answer.halted)
            else:
                text = " ".join(item.row.response.split()[:24])
                halts.append(guard.scan(list(item.row.messages), text).verdict.halt)
        figure = one(summary, "halted", set=of.name, arm="probe", kind=of.kind)
        assert (figure.value, figure.answers) == (sum(halts) / 8, 8)
    values = [one(summary, "halted", set=of.name, arm="probe").value for of in SETS]
    assert 0 < sum(values) < len(values)  # type: ignore[arg-type]
    (roc,) = [chart for chart in summary.charts if chart.kind == "roc"]
    false, true = roc.marks["all stored answers, threshold"]
    assert false == pytest.approx(one(summary, "false alarms", set="all stored answers", arm="probe").value)
    assert true == one(summary, "halted", set="harmful, stored", arm="probe").value


def test_refusals_of_the_model_and_halts_of_the_guard_are_told_apart(tmp_path: Path, data: Path) -> None:
    probe = halting_probe(tmp_path / "first", data)
    context = tables.context("over-refusal", tmp_path / "run", data, probe=probe, settings=TOKENS, arms=("probe",))
    context.__dict__["judge"] = Strict()
    summary = measured(context)
    for of in SETS:
        if of.written:
            refused, halted = (one(summary, name, set=of.name) for name in ("refused", "halted"))
            either, rest = (
                one(summary, name, set=of.name) for name in ("refused or halted", "halted of those answered")
            )
            assert refused.judge == "every second"
            assert refused.value == 0.5
            assert either.value == pytest.approx(0.5 + rest.value * 0.5)
            assert max(refused.value, halted.value) <= either.value <= refused.value + halted.value  # type: ignore[operator]
    harmful = one(summary, "harmful", set="XSTest contrast, own")
    passed = one(summary, "harmful, not halted", set="XSTest contrast, own", arm="probe")
    assert harmful.value == 0.5
    assert passed.answers == 4
    assert passed.value == pytest.approx(1 - one(summary, "halted of those answered", set="XSTest contrast, own").value)


@pytest.mark.slow
def test_a_second_run_makes_nothing_and_a_broken_one_goes_on(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(folder: Path) -> Summary:
        return measured(tables.context("over-refusal", folder, data, settings=TOKENS))

    first = again(tmp_path / "run")
    assert again(tmp_path / "other").record() == first.record()
    records, texts = (tmp_path / "run" / kind / "over-refusal.jsonl" for kind in ("records", "texts"))
    lines = records.read_bytes().splitlines(keepends=True)
    records.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:9])  # killed while it wrote
    written = texts.read_bytes().splitlines(keepends=True)
    texts.write_bytes(b"".join(written[:3]))
    assert again(tmp_path / "run").record() == first.record()

    def used(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was asked again")

    for name in ("open", "read_batch", "replay_batch"):
        monkeypatch.setattr(tables.backend(), name, used)
    assert again(tmp_path / "run").record() == first.record()


def test_records_hold_no_text(tmp_path: Path, data: Path) -> None:
    summary = measured(tables.context("over-refusal", tmp_path / "run", data, settings=TOKENS))
    published = (tmp_path / "run" / "records" / "over-refusal.jsonl").read_text() + json.dumps(summary.record())
    assert "w1 " not in published
    assert "w1 " in "".join(path.read_text() for path in data.iterdir())


def test_slow_arms_are_asked_about_the_beginnings_of_a_few_answers(tmp_path: Path, data: Path) -> None:
    measured(tables.context("over-refusal", tmp_path / "run", data, settings={**TOKENS, "over-refusal.few": "2"}))
    rows = [json.loads(line) for line in (tmp_path / "run" / "records" / "over-refusal.jsonl").read_text().splitlines()]
    slow = [row for row in rows if row["arm"] == "rethink"]
    assert len(slow) == 2 * 7
    assert {depth for row in slow for depth, _, _ in row["checks"]} == {0, 8, 12, 16}  # no early checks; 12 is an end
    assert not any("harmful, stored" in row["id"] for row in slow)


def test_a_missing_table_is_named(tmp_path: Path, data: Path) -> None:
    (data / "prompts_utility.jsonl").unlink()
    with pytest.raises(ConfigError, match="suite over-refusal needs the table prompts_utility"):
        measured(tables.context("over-refusal", tmp_path / "run", data, settings=TOKENS))


def test_an_arm_that_writes_is_refused(tmp_path: Path, data: Path) -> None:
    (tmp_path / "adapter").mkdir()
    settings = {**TOKENS, "over-refusal.deep_aligned": str(tmp_path / "adapter")}
    with pytest.raises(ConfigError, match="deep-aligned writes its own"):
        measured(tables.context("over-refusal", tmp_path / "run", data, settings=settings, arms=("deep-aligned",)))
    with pytest.raises(ConfigError, match="the arms base check nothing"):
        measured(tables.context("over-refusal", tmp_path / "run", data, settings=settings, arms=("base",)))


def test_limits_name_what_is_halted_above_the_target(tmp_path: Path, data: Path) -> None:
    always = tables.probe(threshold=0.0)
    summary = measured(tables.context("over-refusal", tmp_path / "run", data, probe=always, settings=TOKENS))
    assert "probe halts 100.0% (85.8% to 100.0%) of 24 harmless answers (all own answers)" in summary.limits[0]
    never = tables.probe(threshold=1.0)
    quiet = measured(tables.context("over-refusal", tmp_path / "none", data, probe=never, settings=TOKENS))
    assert not [limit for limit in quiet.limits if limit.startswith("probe")]


def row(number: int, source: str, prompt: str | None = None) -> Conversation:
    return Conversation(f"c{number}", ({"role": "user", "content": prompt or f"w{number}"},), source=source)


def test_rows_are_spread_over_groups_and_prompts() -> None:
    rows = [row(0, "a", "w1"), row(1, "a", "w1"), row(2, "a"), row(3, "a"), row(4, "b"), row(5, "c"), row(6, "b")]
    names = [each.id for each in spread(rows, 5, lambda each: each.source)]
    assert names == ["c0", "c4", "c5", "c2", "c6"]
    assert [each.id for each in spread(rows, 99, lambda each: each.source)][-1] == "c1"


def test_tasks_of_one_benchmark_are_one_source() -> None:
    assert [family(name) for name in ("bbh-navigate", "mmlu-law", "gsm8k", "refdir-a-b")] == [
        "bbh", "mmlu", "gsm8k", "refdir-a-b"
    ]  # fmt: skip


def test_prompts_of_the_training_recipe_are_left_out() -> None:
    rows = load("anydepth:benign_prompts")
    (part,) = [part for part in read_recipe().parts if "anydepth:benign_prompts" in part.data]
    left = {each.id for each in not_trained_on("anydepth:benign_prompts", rows)}
    for dropped in (0, 10):  # near-duplicates of held-out prompts that the recipe drops make room for others
        taken = balance(rows[dropped:], per_source=part.limit, seed=part.seed)
        assert not left & {each.id for each in taken.kept}
    assert len(left) > 40


def test_rows_of_a_training_part_are_left_out_by_source_and_label() -> None:
    parts = [part for part in read_recipe().parts if part.split == "train" and "probe_validation" in part.data]
    (part,) = [part for part in parts if part.label == "benign" and "pyrit" in part.sources]

    def row(source: str, label: Label, number: int) -> Conversation:
        request = ({"role": "user", "content": f"Request {number}"},)
        return Conversation(f"{source}-{label}-{number}", request, "An answer.", label=label, source=source)

    trained = [row("pyrit", "benign", number) for number in range(5)]
    others = [row("elsewhere", "benign", number) for number in range(5)] + [row("pyrit", "harmful", 0)]
    assert part.limit is not None and part.limit > 5
    assert not_trained_on("probe_validation", [*trained, *others]) == others
    assert not_trained_on("pairs_benign_validation", trained) == trained
