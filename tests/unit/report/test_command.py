"""`anydepth report`: what it takes, what it writes, and what it says of errors."""

from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from anydepth.cli import Commands
from anydepth.cli.report import report
from anydepth.locks import hold
from tests.unit.report.made_up import bare, manifest, write_run

Invoke = Callable[..., Result]


@pytest.fixture
def invoke() -> Invoke:
    app = typer.Typer(cls=Commands)
    app.callback()(lambda: None)
    app.command()(report)
    return lambda *args: CliRunner().invoke(app, ["report", *map(str, args)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", [bare()], manifest("org/a"))


def test_one_run_is_reported_into_its_folder(invoke: Invoke, run: Path) -> None:
    result = invoke(run)
    assert (result.exit_code, result.stdout.strip()) == (0, str(run / "report" / "index.html"))
    assert "What the guard does" in (run / "report" / "index.html").read_text("utf-8")
    assert invoke(run).exit_code == 0, "the report is made anew"


def test_title_and_folder(invoke: Invoke, run: Path, tmp_path: Path) -> None:
    result = invoke(run, "-o", tmp_path / "out", "--title", "Tom & Jerry")
    assert result.stdout.strip() == str(tmp_path / "out" / "index.html")
    assert "<h1>Tom &amp; Jerry</h1>" in (tmp_path / "out" / "index.html").read_text("utf-8")


def test_several_runs_need_a_folder(invoke: Invoke, run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", [bare()], manifest("org/b"))
    result = invoke(run, other)
    assert result.exit_code == 2
    assert "2 runs and no folder for their report; give one with -o" in result.stderr
    assert invoke(run, other, "-o", tmp_path / "out").exit_code == 0
    assert "org/b" in (tmp_path / "out" / "index.html").read_text("utf-8")


def test_a_folder_that_cannot_be_or_is_anothers_is_refused(invoke: Invoke, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", "/dev/stdout"):
        result = invoke(run, "-o", place)
        assert result.exit_code == 2 and "is no folder; give another place" in " ".join(result.stderr.split())
    with hold(tmp_path / "page"):
        result = invoke(run, "-o", tmp_path / "page")
    assert result.exit_code == 2 and "another process is writing to" in " ".join(result.stderr.split())
    assert not (tmp_path / "page").exists()


def test_errors_are_one_line(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke(tmp_path / "nowhere")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: there is no folder") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_a_missing_library_is_named_with_the_extra(
    invoke: Invoke, tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    from anydepth.evals.figure import Chart, Figure, Summary

    summary = Summary("interval", "T", "P", (Figure("halted", 0.5, (0.4, 0.6), 9),), (Chart("bars", "B", ("halted",)),))
    found = importlib.import_module

    def missing(name: str, package: str | None = None):
        if name == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    result = invoke(write_run(tmp_path / "run", [summary]))
    assert result.exit_code == 2
    assert f"{module} is not installed; run: pip install 'anydepth[report]'" in result.stderr
