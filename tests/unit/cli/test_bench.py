"""`anydepth bench` around a stubbed measurement."""

import json
from pathlib import Path
from typing import Any

import pytest

from anydepth import bench
from anydepth.bench import BenchRow
from anydepth.cli.demo import settings
from tests.unit.cli.conftest import Run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []

    def run(model: str | None, **options: Any) -> dict[str, Any]:
        progress, came = options.pop("progress"), options.pop("came")
        made.append({"model": model, **options})
        progress("1/2 cost of a [check]; about 40 s left")
        row = BenchRow("a check costs", "128 tokens", "0.50 decode steps")
        came([row], {"check_ratio": {"128": 0.5}, "finished": False})
        if model == "org/dies":
            raise KeyboardInterrupt
        result = {"check_ratio": {"128": 0.5}, "finished": True, "cut": ["the scan: left out, it takes about 9 min"]}
        came([], result)
        return result

    monkeypatch.setattr(bench, "run", run)
    return made


def test_tells_what_is_done_prints_figures_and_writes(run: Run, calls: list[dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    result = run("bench", "org/m", "--contexts", "128, 512", "--intervals", "25", "--quick", "--json", file)
    assert result.exit_code == 0, result.stderr
    expected = {
        "config": None,
        "contexts": [128, 512],
        "intervals": [25],
        "probe": None,
        "quick": True,
        "dtype": "float32",
    }
    assert calls == [{"model": "org/m", **expected}]
    assert result.stdout.split() == ["a", "check", "costs", "128", "tokens", "0.50", "decode", "steps"]
    assert result.stderr.splitlines() == [
        "1/2 cost of a [check]; about 40 s left",
        "cut: the scan: left out, it takes about 9 min",
    ]
    assert json.loads(file.read_text())["finished"] is True


def test_what_came_before_a_run_was_stopped_is_in_the_file(
    run: Run, calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    assert run("bench", "org/dies", "--json", file).exit_code != 0
    assert json.loads(file.read_text()) == {"check_ratio": {"128": 0.5}, "finished": False}


def test_a_device_gets_the_figures_once(run: Run, calls: list[dict[str, Any]]) -> None:
    assert run("bench", "org/m", "--json", "/dev/null").exit_code == 0
    result = run("bench", "org/m", "--json", "/dev/full")
    assert result.exit_code == 2 and "cannot write /dev/full: No space left on device" in result.stderr


def test_defaults_are_those_of_the_issue(run: Run, calls: list[dict[str, Any]]) -> None:
    run("bench")
    assert calls[0] == {
        "model": settings().model,
        "config": None,
        "contexts": [128, 512, 2048, 8192],
        "intervals": [1, 5, 25],
        "probe": None,
        "quick": False,
        "dtype": "float32",
    }


def test_a_config_takes_the_place_of_the_model(run: Run, calls: list[dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    assert run("bench", "--config", file).exit_code == 0
    assert calls[0]["model"] is None and calls[0]["config"] == file
    result = run("bench", "org/m", "--config", file)
    assert result.exit_code == 2 and f"MODEL is org/m and --config is {file}; give one of them" in result.stderr


@pytest.mark.parametrize(
    "given",
    [
        ["--contexts", "x"],
        ["--intervals", "0"],
        ["--json", "/nowhere/x.json"],
        ["--json", "/tmp"],
        ["--probe", "nowhere"],
    ],
)
def test_wrong_use_is_found_before_anything_is_measured(
    run: Run, calls: list[dict[str, Any]], given: list[str]
) -> None:
    assert run("bench", *given).exit_code == 2
    assert not calls


def test_a_read_only_file_is_found_before_anything_is_measured(
    run: Run, calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    file.write_text("{}")
    file.chmod(0o444)
    result = run("bench", "--json", file)
    assert result.exit_code == 2 and "read-only" in result.stderr
    assert not calls and file.read_text() == "{}"
