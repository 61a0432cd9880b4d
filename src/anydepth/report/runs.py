"""Open the folders that `anydepth eval` wrote."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from anydepth.errors import ConfigError
from anydepth.evals.figure import Chart, ChartKind, Figure, Summary
from anydepth.evals.suite import SUITES

_NEEDS: Mapping[str, tuple[str, ...]] = {
    "line": ("figures", "x"),
    "bars": ("figures",),
    "heatmap": ("figures", "x", "by"),
    "table": ("figures",),
    "scatter": ("points",),
    "roc": ("points",),
    "histogram": ("points",),
}
"""What a chart of each kind cannot be drawn without."""


@dataclass(frozen=True, slots=True)
class Run:
    """One evaluation of one model.

    Attributes:
        folder: The folder of the run.
        label: What tells it apart from the other runs of the report: the model's short name.
        manifest: The model, probe, options and versions that it was made with.
        summaries: What its suites found, in the order of the report.
    """

    folder: Path
    label: str
    manifest: Mapping[str, Any]
    summaries: Mapping[str, Summary]

    def fact(self, *path: str) -> Any:
        """What the manifest says under these keys, or None."""
        found: Any = self.manifest
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    @property
    def model(self) -> str | None:
        """The model's full name."""
        named = self.fact("model")
        return named if isinstance(named, str) else self.fact("model", "name")


def open_runs(folders: Sequence[Path]) -> tuple[Run, ...]:
    """Read the runs; ConfigError names the folder or file that is not what `anydepth eval` writes."""
    if not folders:
        raise ConfigError("there is no run to report; give folders that `anydepth eval MODEL -o RUN` wrote")
    twice = [str(folder) for folder, times in Counter(folder.resolve() for folder in folders).items() if times > 1]
    if twice:
        raise ConfigError(f"the run {', '.join(twice)} is given twice; give each run once")
    runs = [_open(folder) for folder in folders]
    labels = _labels(runs)
    return tuple(replace(run, label=label) for run, label in zip(runs, labels, strict=True))


def _open(folder: Path) -> Run:
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}; give one that `anydepth eval MODEL -o RUN` wrote")
    manifest = _json(folder / "manifest.json")
    path = folder / "summary.json"
    suites = _json(path).get("suites")
    if not isinstance(suites, dict):
        raise ConfigError(f"{path} has no `suites`, so `anydepth eval` did not write it; give the folder of a run")
    if not suites:
        raise ConfigError(f"{path} holds no suite yet; let `anydepth eval … -o {folder}` finish one first")
    found = {name: _summary(path, name, record) for name, record in suites.items()}
    return Run(folder, "", manifest, {name: found[name] for name in in_report_order(found)})


def in_report_order(suites: Iterable[str]) -> list[str]:
    """Each suite once: those that we know in the order of the report, then any other as it came."""
    once = dict.fromkeys(suites)
    return [name for name in SUITES if name in once] + [name for name in once if name not in SUITES]


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(
            f"there is no {path}; give a folder that `anydepth eval MODEL -o RUN` wrote, after its first suite is done"
        )
    try:
        found = json.loads(path.read_text("utf-8-sig"))
    except (OSError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON ({error}); run the evaluation again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no JSON object, so `anydepth eval` did not write it; give the folder of a run")
    return found


def _summary(path: Path, name: str, record: Any) -> Summary:
    try:
        if not isinstance(record, Mapping):
            raise ConfigError("it is no JSON object")
        summary = Summary.of(record)
        figures = tuple(map(_checked, summary.figures))
        for chart in summary.charts:
            _check_chart(chart)
    except (ConfigError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path}: the suite {name!r} cannot be read: {error}; run `anydepth eval` of this version again"
        ) from error
    return replace(summary, figures=figures)


def _checked(figure: Figure) -> Figure:
    """The figure, without an interval that has no end."""
    ends = figure.interval or ()
    if not all(end is None or _is_number(end) for end in (figure.value, *ends)) or len(ends) not in (0, 2):
        raise ConfigError(f"the figure {figure.name!r} has the value {figure.value!r} and the interval {ends!r}")
    if not isinstance(figure.group, Mapping) or not all(
        isinstance(v, str | int | float) for v in figure.group.values()
    ):
        raise ConfigError(f"the figure {figure.name!r} has the group {figure.group!r}")
    if not isinstance(figure.answers, int):
        raise ConfigError(f"the figure {figure.name!r} is of {figure.answers!r} answers")
    return replace(figure, interval=None) if None in ends else figure


def _check_chart(chart: Chart) -> None:
    if chart.kind not in get_args(ChartKind):
        raise ConfigError(f"the chart {chart.title!r} is of the kind {chart.kind!r}, of which there is none")
    missing = [need for need in _NEEDS[chart.kind] if not getattr(chart, need)]
    if missing:
        raise ConfigError(f"the chart {chart.title!r} of kind {chart.kind!r} says nothing of its {missing[0]!r}")
    pairs = chart.kind in ("scatter", "roc")
    for name, series in chart.points.items():
        if not all(_is_pair(item) if pairs else _is_number(item) for item in series):
            raise ConfigError(
                f"the points {name!r} of the chart {chart.title!r} are not {'pairs' if pairs else 'numbers'}"
            )
    if not all(map(_is_pair, chart.marks.values())):
        raise ConfigError(f"the marks of the chart {chart.title!r} are not pairs of numbers")


def _is_number(item: Any) -> bool:
    return isinstance(item, int | float) and not isinstance(item, bool)


def _is_pair(item: Any) -> bool:
    return isinstance(item, Sequence) and len(item) == 2 and all(map(_is_number, item))


def _labels(runs: Sequence[Run]) -> list[str]:
    """The model's short name; with the adapter, else the folder, where two runs have the same."""
    names = [(run.model or run.folder.name).rstrip("/").rpartition("/")[2] for run in runs]
    for more in (_adapter, lambda run: run.folder.name, lambda run: str(run.folder)):
        times = Counter(names)
        names = [
            f"{name}, {extra}" if times[name] > 1 and (extra := more(run)) else name
            for name, run in zip(names, runs, strict=True)
        ]
    return names


def _adapter(run: Run) -> str | None:
    found = run.fact("model", "adapter") or run.fact("options", "adapter")
    return found and str(found).rstrip("/").rpartition("/")[2]
