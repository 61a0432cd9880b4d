"""Figures as tables: for people side by side, for programs one figure a row."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from anydepth.evals.figure import Figure
from anydepth.report import words
from anydepth.report.drawing import Place, in_order
from anydepth.report.panels import Part, Shared

_FIXED = ("run", "name", "value", "low", "high", "answers", "unit", "judge", "note")


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of one run, as text; unit and place are what a sentence says behind the number."""

    value: str
    interval: str
    answers: str
    unit: str = ""
    place: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure with what every run says of it.

    Attributes:
        name: What was measured.
        facts: What it is about, one per key of the table; empty where the figure lacks the key.
        cells: One cell per run; None where the run lacks the figure.
        unit: The unit of the values.
        judge: Which judge decided.
        note: Remark.
    """

    name: str
    facts: tuple[str, ...]
    cells: tuple[Cell | None, ...]
    unit: str
    judge: str
    note: str


@dataclass(frozen=True, slots=True)
class FigureTable:
    """Figures in rows, runs in columns."""

    keys: tuple[str, ...]
    runs: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def judged(self) -> bool:
        """Whether any figure needed a judge."""
        return any(row.judge for row in self.rows)

    @property
    def noted(self) -> bool:
        """Whether any figure has a note."""
        return any(row.note for row in self.rows)


@dataclass(frozen=True, slots=True)
class Pivot:
    """Figures by two facts of their groups: columns along `x`, rows along `by`."""

    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


def figure_table(parts: Sequence[Part]) -> FigureTable:
    """All figures of the parts, in their order; the same figure of several runs in one row."""
    keys = tuple(dict.fromkeys(key for part in parts for figure in part.figures for key in figure.group))
    found: dict[tuple, dict[int, Figure]] = {}
    for number, part in enumerate(parts):
        seen: dict[tuple, int] = {}
        for figure in part.figures:
            same = (figure.name, figure.unit, tuple(sorted(figure.group.items(), key=lambda item: item[0])))
            seen[same] = seen.get(same, 0) + 1
            found.setdefault((*same, seen[same]), {})[number] = figure
    rows = tuple(_row(figures, keys, len(parts)) for figures in found.values())
    return FigureTable(tuple(map(words.spaced, keys)), tuple(part.run.label for part in parts), rows)


def pivots(shared: Shared) -> list[Pivot] | None:
    """The figures of a chart by `x` and `by`, one pivot per name; None if these do not distinguish its figures."""
    x, by = shared.chart.x, shared.chart.by
    if x is None:
        return None
    found: dict[tuple[str, str], dict[tuple[Place | None, str], dict[Place, Figure]]] = {}
    for part in shared.parts:
        for figure in part.figures:
            if x not in figure.group or set(figure.group) - {x, by}:
                return None
            row = (figure.group.get(by) if by else None, part.run.label if shared.several else "")
            cells = found.setdefault((figure.name, figure.unit), {}).setdefault(row, {})
            if figure.group[x] in cells:
                return None
            cells[figure.group[x]] = figure
    return [_pivot(shared, name, unit, rows) for (name, unit), rows in found.items()]


def figures_csv(parts: Sequence[Part]) -> str:
    """All figures of the parts, one per row, with every digit."""
    keys = list(dict.fromkeys(key for part in parts for figure in part.figures for key in figure.group))
    named = [f"group_{key}" if key in _FIXED else key for key in keys]
    rows = [
        [
            part.run.label,
            figure.name,
            *(figure.group.get(key) for key in keys),
            figure.value,
            *(figure.interval or (None, None)),
            figure.answers,
            figure.unit,
            figure.judge,
            figure.note,
        ]
        for part in parts
        for figure in part.figures
    ]
    return _csv([*_FIXED[:2], *named, *_FIXED[2:]], rows)


def points_csv(shared: Shared) -> str:
    """The points of a chart, one per row."""
    rows = [
        [part.run.label, name, *(point if isinstance(point, Sequence) else (point,))]
        for part in shared.parts
        for name, points in part.chart.points.items()
        for point in points
    ]
    marks = [[part.run.label, f"mark: {name}", *at] for part in shared.parts for name, at in part.chart.marks.items()]
    return _csv(["run", "series", "x", "y"], rows + marks)


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return target.getvalue()


def _row(figures: dict[int, Figure], keys: Sequence[str], runs: int) -> Row:
    one = next(iter(figures.values()))
    return Row(
        words.spaced(one.name),
        tuple(words.axis_value(one.group[key]) if key in one.group else "" for key in keys),
        tuple(cell(figures[number]) if number in figures else None for number in range(runs)),
        one.unit,
        _joined(figure.judge for figure in figures.values()),
        _joined(figure.note for figure in figures.values()),
    )


def cell(figure: Figure) -> Cell:
    """A figure as text."""
    answers = f"{figure.answers:,}" if figure.answers else words.NOTHING
    unit = "" if figure.value is None else words.SUFFIX.get(figure.unit, "")
    return Cell(words.value(figure), words.interval(figure), answers, unit)


def _joined(texts) -> str:
    return " / ".join(dict.fromkeys(text for text in texts if text))


def _pivot(shared: Shared, name: str, unit: str, rows: dict[tuple[Place | None, str], dict[Place, Figure]]) -> Pivot:
    columns = in_order(place for cells in rows.values() for place in cells)
    first = list(dict.fromkeys(by for by, _ in rows))
    labelled = []
    for by, run in sorted(rows, key=lambda row: first.index(row[0])):
        label = words.joined("" if by is None else words.axis_value(by), run) or words.spaced(name)
        found = rows[by, run]
        labelled.append((label, tuple(cell(found[place]) if place in found else None for place in columns)))
    corner = f"{words.spaced(name)} ({words.axis_unit(unit)}) by {words.axis(shared.chart.x)}"
    return Pivot(corner, tuple(map(words.axis_value, columns)), tuple(labelled))
