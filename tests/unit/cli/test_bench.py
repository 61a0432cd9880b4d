"""`anydepth bench` around a stubbed measurement."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from anydepth import bench
from anydepth.cli.demo import settings
from tests.unit.cli.conftest import Run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []

    def run(model: str, **options: Any) -> dict[str, Any]:
        options.pop("progress")("measuring")
        made.append({"model": model, **options})
        return {"check_ratio": {"128": 0.5}}

    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr(bench, "table", lambda result: Table("figures"))
    return made


def test_measures_prints_and_writes(run: Run, calls: list[dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    result = run("bench", "org/m", "--contexts", "128, 512", "--intervals", "25", "--quick", "--json", file)
    assert result.exit_code == 0, result.stderr
    expected = {"contexts": [128, 512], "intervals": [25], "probe": None, "quick": True, "dtype": "float32"}
    assert calls == [{"model": "org/m", **expected}]
    assert "figures" in result.stdout
    assert json.loads(file.read_text()) == {"check_ratio": {"128": 0.5}}


def test_defaults_are_those_of_the_issue(run: Run, calls: list[dict[str, Any]]) -> None:
    run("bench")
    assert calls[0] == {
        "model": settings().model,
        "contexts": [128, 512, 2048, 8192],
        "intervals": [10, 25, 50, 100],
        "probe": None,
        "quick": False,
        "dtype": "float32",
    }


@pytest.mark.parametrize(
    "given", [["--contexts", "x"], ["--intervals", "0"], ["--json", "/nowhere/x.json"], ["--probe", "nowhere"]]
)
def test_wrong_use_is_found_before_anything_is_measured(
    run: Run, calls: list[dict[str, Any]], given: list[str]
) -> None:
    assert run("bench", *given).exit_code == 2
    assert not calls
