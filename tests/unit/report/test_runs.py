"""Opening the folders of runs, and saying what is wrong with one."""

import json
from pathlib import Path
from typing import Any

import pytest

from anydepth.errors import ConfigError
from anydepth.evals.figure import Chart, Figure, Summary
from anydepth.report import open_runs
from tests.unit.report.made_up import bare, latency, manifest, summaries, write_run

GOOD = Summary(
    "interval", "T", "P", (Figure("halted", 0.5, (0.4, 0.6), 10),), (Chart("bars", "B", ("halted",)),)
).record()


def changed(**parts: Any) -> dict[str, Any]:
    return {"suites": {"interval": {**GOOD, **parts}}}


def figure(**parts: Any) -> dict[str, Any]:
    return changed(figures=[{**GOOD["figures"][0], **parts}])


def chart(**parts: Any) -> dict[str, Any]:
    return changed(charts=[{**GOOD["charts"][0], **parts}])


def test_suites_come_in_the_order_of_the_report(tmp_path: Path) -> None:
    own = Summary("my-suite", "Mine", "None.", ())
    (run,) = open_runs([write_run(tmp_path / "run", [own, *summaries()])])
    assert list(run.summaries) == [
        "deep-prefill", "attacks", "over-refusal", "utility", "separability", "interval", "erosion", "causal",
        "latency", "my-suite",
    ]  # fmt: skip
    assert run.label == "tiny-0.5b"
    assert run.model == "org/tiny-0.5b"
    assert run.fact("options", "seed") == 7
    assert run.fact("options", "nothing", "at all") is None


def test_labels_tell_runs_apart(tmp_path: Path) -> None:
    facts = [
        manifest("org/a"),
        manifest("org/b"),
        manifest("org/b", model={"name": "org/b", "adapter": "adapters/harsh"}),
        manifest("org/c"),
        manifest("org/c"),
        manifest("x", model="/models/plain/"),
        {},
    ]
    runs = open_runs([write_run(tmp_path / f"run{n}", [bare()], each) for n, each in enumerate(facts)])
    assert [run.label for run in runs] == ["a", "b", "b, harsh", "c, run3", "c, run4", "plain", "run6"]


def test_an_interval_without_ends_is_none(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [latency()])
    (folder / "summary.json").write_text(json.dumps(figure(interval=[None, None])), "utf-8")
    (run,) = open_runs([folder])
    assert run.summaries["interval"].figures[0].interval is None


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "summary.json cannot be read as JSON"),
        ([], "summary.json holds no JSON object"),
        ({}, "summary.json has no `suites`"),
        ({"suites": {}}, "summary.json holds no suite yet"),
        ({"suites": {"interval": 3}}, "'interval' cannot be read: it is no JSON object"),
        ({"suites": {"interval": {"title": "T"}}}, "'interval' cannot be read: a summary is not of the form"),
        (changed(figures=[{"name": "x"}]), "a figure is"),
        (changed(charts=[{"kind": "bars"}]), "a chart is not of the form"),
        (figure(value="much"), "'halted' has the value 'much'"),
        (figure(value=True), "'halted' has the value True"),
        (figure(interval=[1, 2, 3]), "'halted' has the value"),
        (figure(interval="wide"), "'halted' has the value"),
        (figure(group={"arm": ["probe"]}), "'halted' has the group"),
        (figure(group=None), "'halted' has the group"),
        (figure(answers="many"), "'halted' is of 'many' answers"),
        (chart(kind="pie"), "'B' is of the kind 'pie'"),
        (chart(kind="line"), "'B' of kind 'line' says nothing of its 'x'"),
        (chart(kind="heatmap", x="depth"), "'B' of kind 'heatmap' says nothing of its 'by'"),
        (chart(kind="roc"), "'B' of kind 'roc' says nothing of its 'points'"),
        (chart(kind="roc", points={"probe": [0.5]}), "points 'probe' of the chart 'B' are not pairs"),
        (chart(kind="histogram", points={"probe": [[0, 1]]}), "points 'probe' of the chart 'B' are not numbers"),
        (chart(marks={"here": [1, "up"]}), "marks of the chart 'B' are not pairs"),
    ],
)
def test_a_summary_of_another_form_is_named(tmp_path: Path, record: Any, message: str) -> None:
    folder = write_run(tmp_path / "run", [latency()])
    text = record if isinstance(record, str) else json.dumps(record)
    (folder / "summary.json").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=r"summary\.json") as caught:
        open_runs([folder])
    assert message in str(caught.value)
    assert "anydepth eval" in str(caught.value) or "again" in str(caught.value)


@pytest.mark.parametrize("name", ["manifest.json", "summary.json"])
def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "run", [latency()])
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"there is no .*{name}; give a folder that `anydepth eval MODEL -o RUN`"):
        open_runs([folder])


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere"):
        open_runs([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="there is no run to report"):
        open_runs([])
    folder = write_run(tmp_path / "run", [latency()])
    with pytest.raises(ConfigError, match="given twice"):
        open_runs([folder, tmp_path / "." / "run"])
