"""Runs to report, opened; the large ones are rendered once."""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from anydepth.evals.figure import Chart, Figure, Summary
from anydepth.report import Run, open_runs, render
from tests.unit.report.made_up import manifest, summaries, write_run

OpenRuns = Callable[..., tuple[Run, ...]]


@pytest.fixture
def opened(tmp_path: Path) -> OpenRuns:
    """Opens runs that each have the given charts and figures: `opened(("org/a", figures, charts), …)`."""

    numbers = count()

    def open_(*runs: tuple[str, Sequence[Figure], Sequence[Chart]], suite: str = "interval") -> tuple[Run, ...]:
        folders = []
        for model, figures, charts in runs:
            summary = Summary(suite, "A suite", "A claim.", tuple(figures), tuple(charts))
            folders.append(write_run(tmp_path / f"run{next(numbers)}", [summary], manifest(model)))
        return open_runs(folders)

    return open_


@pytest.fixture(scope="package")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, ...]:
    """All suites of one model, and some of them of another, without a probe."""
    folder = tmp_path_factory.mktemp("runs")
    bare: Mapping[str, Any] = manifest("org/Tiny-1.5B", probe=None)
    bare = {key: value for key, value in bare.items() if key in ("model", "probe")}
    return open_runs(
        [
            write_run(folder / "small", summaries(), manifest("org/Tiny-0.5B")),
            write_run(folder / "large", summaries(0.8, range(5, 28, 3))[:6], bare),
        ]
    )


@pytest.fixture(scope="package")
def files(two_runs: tuple[Run, ...]) -> dict[str, bytes]:
    """The files of their report."""
    return render(two_runs)
