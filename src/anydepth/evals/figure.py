"""What a suite finds out: figures with intervals, and how they are drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from anydepth.errors import ConfigError
from anydepth.types import json_number

Group = Mapping[str, str | int | float]
"""What a figure is about, e.g. `{"arm": "probe", "depth": 100}`."""

ChartKind = Literal["line", "bars", "heatmap", "scatter", "roc", "histogram", "table"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a suite.

    Attributes:
        name: What was measured, e.g. `halted`.
        value: The number; None where there was nothing to measure.
        interval: Low and high end of its 95 % interval, or None for a number that has none (a count, a setting).
        answers: Over how many answers (or repetitions) it was measured.
        unit: `share`, `tokens`, `seconds`, `ratio`, `auroc`, `MiB`, `count` ...
        group: What the number is about, e.g. arm and depth.
        judge: Which judge decided, or None where nothing had to be judged.
        note: A remark that belongs beside the number.
    """

    name: str
    value: float | None
    interval: tuple[float, float] | None = None
    answers: int = 0
    unit: str = "share"
    group: Group = field(default_factory=dict)
    judge: str | None = None
    note: str | None = None

    def record(self) -> dict[str, Any]:
        """JSON-ready form."""
        ends = None if self.interval is None else [json_number(end) for end in self.interval]
        return _record(self, value=json_number(self.value), interval=ends, group=dict(self.group))

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Figure":
        """Read the form that `record` gives; ConfigError if it is another."""
        try:
            interval = record["interval"]
            return cls(**{**record, "interval": None if interval is None else tuple(interval)})
        except (KeyError, TypeError) as error:
            raise ConfigError(f"a figure is {record!r}, which `anydepth eval` did not write ({error})") from error


@dataclass(frozen=True, slots=True)
class Chart:
    """How some figures of a suite are drawn.

    Attributes:
        kind: `line` (value over `x`, one line per `by`), `bars` (one bar per `x`, grouped by `by`), `heatmap` (value by
            `x` and `by`), `table` (all figures of the names), `histogram` (the numbers in `points`), `scatter` and
            `roc` (the pairs in `points`).
        title: Headline.
        figures: Names of the figures that it shows.
        x: Key of the group along the horizontal axis.
        by: Key of the group that tells the lines, bars or rows apart.
        caption: What the reader should see, and how it was measured.
        points: Series for `scatter`, `roc` and `histogram`: name -> numbers, or pairs of them. No text of answers.
        marks: Single points to mark, such as the operating point on a ROC curve: label -> (x, y).
        log_x: Draw the horizontal axis on a logarithmic scale.
    """

    kind: ChartKind
    title: str
    figures: tuple[str, ...] = ()
    x: str | None = None
    by: str | None = None
    caption: str = ""
    points: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    marks: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    log_x: bool = False

    def record(self) -> dict[str, Any]:
        """JSON-ready form."""
        points = {name: list(map(_plain, series)) for name, series in self.points.items()}
        return _record(self, points=points, marks={name: list(mark) for name, mark in self.marks.items()})

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Chart":
        """Read the form that `record` gives; ConfigError if it is another."""
        try:
            marks = {name: tuple(mark) for name, mark in record["marks"].items()}
            return cls(**{**record, "figures": tuple(record["figures"]), "marks": marks})
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"a chart is not of the form that `anydepth eval` writes ({error})") from error


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that one suite says.

    Attributes:
        suite: Name of the suite.
        title: Headline.
        paper: Which claim of the paper it tests, with section, table or figure.
        figures: The numbers.
        charts: How to draw them.
        limits: Where it does not hold, sentence by sentence; they make the report's last section.
        notes: How it was measured: samples, what was left out, what differs from the paper.
    """

    suite: str
    title: str
    paper: str
    figures: tuple[Figure, ...]
    charts: tuple[Chart, ...] = ()
    limits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """JSON-ready form."""
        figures, charts = ([each.record() for each in made] for made in (self.figures, self.charts))
        return _record(self, figures=figures, charts=charts)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Summary":
        """Read the form that `record` gives; ConfigError if it is another."""
        try:
            made = {
                "figures": tuple(map(Figure.of, record["figures"])),
                "charts": tuple(map(Chart.of, record["charts"])),
            }
            return cls(**{**record, **made, "limits": tuple(record["limits"]), "notes": tuple(record["notes"])})
        except (KeyError, TypeError) as error:
            raise ConfigError(f"a summary is not of the form that `anydepth eval` writes ({error})") from error


def _record(made: Figure | Chart | Summary, **forms: Any) -> dict[str, Any]:
    """The fields of `made` by name, in their order; `forms` are the JSON-ready forms of some; a tuple is a list."""
    found = {each.name: getattr(made, each.name) for each in fields(made)} | forms
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _plain(item: Any) -> Any:
    return [float(number) for number in item] if isinstance(item, Sequence) else float(item)
