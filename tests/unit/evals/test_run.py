"""Run folders: manifest, summaries, going on."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anydepth import Every
from anydepth.config import GuardConfig
from anydepth.errors import ConfigError, StoreError
from anydepth.evals import evaluation as runs
from anydepth.evals.context import Context
from anydepth.evals.eval_options import EvalOptions
from anydepth.evals.evaluation import MANIFEST, SUMMARY, Evaluation, evaluate
from anydepth.evals.figure import Chart, Figure, Summary
from anydepth.evals.suite import SUITES, load_suite
from anydepth.report import open_runs
from tests.disk import full_disk
from tests.evaluations import random_probe, tiny_backend, write_tables

TABLE = "pairs_deep_validation"


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    backend = tiny_backend()
    options = EvalOptions(data_dir=write_tables(tmp_path / "data"), quick=True, limit=3)
    return Evaluation(backend, tmp_path / "run", options, "refusal", random_probe(backend), command="anydepth eval m")


@pytest.fixture
def suites(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Suites that a test may put in the place of the real ones."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(runs, "load_suite", lambda name: SimpleNamespace(run=found[name]))
    return found


def counting(context: Context) -> Summary:
    """Reads a table and makes three records."""
    rows = context.table(TABLE, limit=3)
    found = [context.record(row.id, lambda row=row: {"n": len(row.response)})["n"] for row in rows]
    return Summary(context.suite, "Counting", "none", (Figure("length", sum(found), None, 3, "tokens"),))


def test_a_run_has_a_manifest_a_summary_and_records(evaluation: Evaluation, suites: dict[str, Any]) -> None:
    suites["latency"] = counting
    found = evaluate(evaluation, ["latency"], silent)
    (run,) = open_runs([evaluation.folder])
    assert run.summaries == found
    manifest = run.manifest
    assert manifest["model"]["fingerprint"] == evaluation.backend.identity.fingerprint
    assert manifest["model"]["dtype"] == "float32"
    assert manifest["guard"]["schedule"] == "Every(interval=25, doubling=True)"
    assert manifest["options"]["limit"] == 3 and manifest["judge"] == "refusal"
    assert manifest["data"][TABLE]["rows"] == 24 and manifest["versions"]["torch"]
    assert manifest["suites"]["latency"]["seconds"] >= 0
    assert str(evaluation.folder.parent) not in (evaluation.folder / MANIFEST).read_text()
    assert len((evaluation.folder / "records" / "latency.jsonl").read_text().splitlines()) == 3


def test_suites_are_added_to_a_run_in_the_order_of_the_report(evaluation: Evaluation, suites: dict[str, Any]) -> None:
    suites.update(dict.fromkeys(("latency", "interval", "attacks"), counting))
    evaluate(evaluation, ["latency"], silent)
    evaluate(evaluation, ["interval", "attacks"], silent)
    assert list(open_runs([evaluation.folder])[0].summaries) == ["attacks", "interval", "latency"]


def test_a_suite_that_fails_leaves_the_finished_ones(evaluation: Evaluation, suites: dict[str, Any]) -> None:
    def failing(context: Context) -> Summary:
        context.record("one", lambda: {"n": 1})
        raise ConfigError("it lacks its data")

    suites.update({"interval": counting, "latency": failing})
    with pytest.raises(ConfigError, match="lacks its data"):
        evaluate(evaluation, ["interval", "latency"], silent)
    assert list(open_runs([evaluation.folder])[0].summaries) == ["interval"]
    suites["latency"] = counting
    evaluate(evaluation, ["latency"], silent)
    assert "one" in (evaluation.folder / "records" / "latency.jsonl").read_text(), "its records were kept"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"judge": "text"}, "judge"),
        ({"config": GuardConfig(schedule=Every(10))}, "guard"),
        ({"probe": None}, "probe"),
        ({"options": EvalOptions(quick=True, limit=4)}, "options"),
        ({"backend": tiny_backend("Qwen2"), "probe": None}, "model"),
    ],
)
def test_a_folder_is_of_one_evaluation(
    evaluation: Evaluation, suites: dict[str, Any], changed: dict[str, Any], named: str
) -> None:
    suites["latency"] = counting
    evaluate(evaluation, ["latency"], silent)
    with pytest.raises(ConfigError, match=rf"was begun with {named}.*another place \(-o\)"):
        evaluate(replace(evaluation, **changed), ["latency"], silent)


def test_going_on_makes_what_is_missing_only(evaluation: Evaluation, suites: dict[str, Any]) -> None:
    suites["latency"] = counting
    first = evaluate(evaluation, ["latency"], silent)
    file = evaluation.folder / "records" / "latency.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]) + lines[2][:10])  # killed in the middle of a line
    assert evaluate(evaluation, ["latency"], silent) == first
    assert file.read_bytes() == b"".join(lines)


def test_a_table_that_has_changed_is_noticed_even_after_a_kill(evaluation: Evaluation, suites: dict[str, Any]) -> None:
    def killed(context: Context) -> Summary:
        counting(context)
        raise KeyboardInterrupt

    suites["latency"] = killed
    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluation, ["latency"], silent)
    assert evaluation.options.data_dir is not None
    table = evaluation.options.data_dir / f"{TABLE}.jsonl"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:-1]) + "\n")
    suites["latency"] = counting
    with pytest.raises(ConfigError, match=f"table {TABLE} of other rows \\(24, now 23\\)"):
        evaluate(evaluation, ["latency"], silent)
    table.write_text("\n".join(reversed(lines)) + "\n")  # the order of the rows decides nothing
    assert evaluate(evaluation, ["latency"], silent)["latency"].figures[0].answers == 3


def test_a_label_that_has_changed_is_noticed(evaluation: Evaluation, suites: dict[str, Any]) -> None:
    suites["latency"] = suites["interval"] = counting
    evaluate(evaluation, ["latency"], silent)
    assert evaluation.options.data_dir is not None
    table = evaluation.options.data_dir / f"{TABLE}.jsonl"
    table.write_text(table.read_text().replace('"harmful"', '"benign"', 1))
    for suite in ("latency", "interval"):
        with pytest.raises(ConfigError, match=r"of other rows \(24, now 24\): a text, label, source"):
            evaluate(evaluation, [suite], silent)


def test_a_manifest_that_does_not_know_the_labels_is_not_gone_on_with(
    evaluation: Evaluation, suites: dict[str, Any]
) -> None:
    suites["latency"] = counting
    evaluate(evaluation, ["latency"], silent)
    file = evaluation.folder / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["data"][TABLE]["of"]
    file.write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="begun by an earlier anydepth, which did not note the labels"):
        evaluate(evaluation, ["latency"], silent)


def test_records_without_a_manifest_are_not_gone_on_with(evaluation: Evaluation, suites: dict[str, Any]) -> None:
    suites["latency"] = counting
    evaluate(evaluation, ["latency"], silent)
    (evaluation.folder / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"has records and no manifest\.json"):
        evaluate(evaluation, ["latency"], silent)


def test_suites_of_one_folder_have_one_probe(evaluation: Evaluation, suites: dict[str, Any]) -> None:
    suites["latency"] = suites["interval"] = counting
    evaluate(evaluation, ["latency"], silent)
    other = replace(evaluation, probe=random_probe(evaluation.backend, seed=5))
    with pytest.raises(ConfigError, match="was begun with probe"):
        evaluate(other, ["interval"], silent)


def test_settings_are_checked_before_anything_is_written(evaluation: Evaluation, suites: dict[str, Any]) -> None:
    suites["latency"] = counting
    wrong = replace(evaluation, options=replace(evaluation.options, settings={"latency.round": "3"}))
    with pytest.raises(ConfigError, match="latency has no option 'round'; it has samples, rounds"):
        evaluate(wrong, ["latency"], silent)
    assert not evaluation.folder.exists()


def test_a_summary_with_a_number_that_is_not_finite_is_an_error(evaluation: Evaluation, suites: dict[str, Any]) -> None:
    def broken(context: Context) -> Summary:
        chart = Chart("scatter", "Title", points={"a": [(float("nan"), 1.0)]})
        return Summary(context.suite, "Broken", "none", (), (chart,))

    suites["latency"] = broken
    with pytest.raises(StoreError, match="a figure cannot be stored as JSON"):
        evaluate(evaluation, ["latency"], silent)


def test_an_unknown_suite_is_refused_before_anything_is_written(evaluation: Evaluation) -> None:
    with pytest.raises(ConfigError, match="no suite 'speed'; choose from deep-prefill"):
        evaluate(evaluation, ["speed"], silent)
    assert not evaluation.folder.exists()


def test_a_folder_that_cannot_be_written_is_named(evaluation: Evaluation, suites: dict[str, Any]) -> None:
    suites["latency"] = counting
    evaluation.folder.parent.joinpath("file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*file/run: .*another place"):
        evaluate(replace(evaluation, folder=evaluation.folder.parent / "file" / "run"), ["latency"], silent)


def test_a_second_evaluation_into_one_folder_is_refused(evaluation: Evaluation, suites: dict[str, Any]) -> None:
    def nested(context: Context) -> Summary:
        with pytest.raises(ConfigError, match="another process is writing to"):
            evaluate(evaluation, ["interval"], silent)
        return counting(context)

    suites.update({"latency": nested, "interval": counting})
    assert list(evaluate(evaluation, ["latency"], silent)) == ["latency"]
    assert list(evaluate(evaluation, ["interval"], silent)) == ["interval"], "the lock is given back"


def test_a_disk_that_fills_is_said_and_nothing_is_lost(evaluation: Evaluation, suites: dict[str, Any]) -> None:
    def long(context: Context) -> Summary:
        context.record("long", lambda: {"n": 1, "words": "x" * 100_000})
        return counting(context)

    suites.update({"latency": counting, "interval": long})
    first = evaluate(evaluation, ["latency"], silent)
    with full_disk(50_000), pytest.raises(ConfigError, match=r"cannot write .*interval\.jsonl: File too large"):
        evaluate(evaluation, ["interval"], silent)
    assert open_runs([evaluation.folder])[0].summaries == first
    again = evaluate(evaluation, ["interval"], silent)
    assert list(open_runs([evaluation.folder])[0].summaries) == ["interval", "latency"] and again["interval"].figures


@pytest.mark.parametrize("name", [MANIFEST, SUMMARY, "records/latency.jsonl.run.json"])
@pytest.mark.parametrize("content", ["[]", "{}", "{", "[" * 100_000])
def test_a_file_of_the_run_that_is_something_else_is_named(
    evaluation: Evaluation, suites: dict[str, Any], name: str, content: str
) -> None:
    suites["latency"] = counting
    evaluate(evaluation, ["latency"], silent)
    (evaluation.folder / name).write_text(content)
    with pytest.raises(ConfigError, match=name.rpartition("/")[2] if "run.json" not in name else r"latency\.jsonl"):
        evaluate(evaluation, ["latency"], silent)
    assert (evaluation.folder / name).read_text() == content


@pytest.mark.parametrize("name", ["deep-prefill", "interval", "latency"])
def test_a_suite_says_what_it_tests(name: str) -> None:
    suite = load_suite(name)
    assert name in SUITES and suite.TITLE and suite.PAPER


def test_a_summary_is_read_back_as_it_was_written() -> None:
    chart = Chart("scatter", "Title", (), points={"a": [(1.0, 2.0)]}, marks={"here": (1.0, 2.0)}, log_x=True)
    figures = (
        Figure("halted", 0.5, (0.2, 0.8), 10, "share", {"arm": "probe", "depth": 5}, "a judge", "a note"),
        Figure("leak", None, None, 0, "tokens"),
    )
    summary = Summary("interval", "Title", "Claim", figures, (chart,), ("a limit",), ("a note",))
    record = json.loads(json.dumps(summary.record(), allow_nan=False))
    again = Summary.of(record)
    assert again.record() == summary.record()
    assert (again.figures, again.charts[0].marks) == (figures, chart.marks)
    assert Figure("x", float("nan")).record()["value"] is None
    for broken in ({}, {**record, "figures": [{}]}, {**record, "charts": [{"marks": 3}]}):
        with pytest.raises(ConfigError, match="`anydepth eval`"):
            Summary.of(broken)
