"""One suite as the page shows it: charts with captions, tables, notes."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from anydepth.errors import ConfigError
from anydepth.evals.figure import Chart
from anydepth.report import words
from anydepth.report.charts import NARROW, WIDE, draw
from anydepth.report.drawing import Drawing, value_axis
from anydepth.report.looks import Looks
from anydepth.report.panels import Part, Shared, drawing, shared_charts
from anydepth.report.runs import Run
from anydepth.report.svg import image, png_file, svg_file
from anydepth.report.tables import FigureTable, Pivot, figure_table, figures_csv, pivots, points_csv

_KINDS = {
    "line": "Lines",
    "bars": "Bars",
    "heatmap": "Heat map",
    "scatter": "Scatter",
    "roc": "ROC curves",
    "histogram": "Histograms",
}
_POINTS = ("scatter", "roc", "histogram")


@dataclass(frozen=True, slots=True)
class ChartView:
    """A chart on the page.

    Attributes:
        id: Anchor, and name of its files.
        title: Headline.
        captions: What the reader should see; the first of each pair is the run, empty where all say the same.
        remarks: Answers, intervals and judges of what is shown.
        description: What the figure shows, for those who cannot see it.
        wide: The figure for a wide page, in the light and in the dark; empty where there is nothing to draw.
        narrow: The figure for a phone; empty where the wide one is scrolled.
        pivots: A `table` as columns and rows.
        table: A `table` whose figures two keys do not distinguish.
        download: CSV of its points or figures, as a link that needs no other file.
    """

    id: str
    title: str
    captions: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]
    description: str = ""
    wide: tuple[str, ...] = ()
    narrow: tuple[str, ...] = ()
    pivots: tuple[Pivot, ...] = ()
    table: FigureTable | None = None
    download: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A suite on the page.

    Attributes:
        suite: Name and anchor.
        title: Headline.
        paper: The paper's claim.
        charts: In their order.
        table: All figures.
        download: The table as CSV.
        notes: How it was measured, by run as captions are.
        limits: Where it does not hold, by run as captions are.
        missing: Labels of the runs that have no such suite.
    """

    suite: str
    title: str
    paper: str
    charts: tuple[ChartView, ...]
    table: FigureTable
    download: str
    notes: tuple[tuple[str, str], ...]
    limits: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]


_NO_CHART = Chart("table", "")

Files = dict[str, bytes]
"""What is written: path below the output folder -> content."""


def section(runs: Sequence[Run], suite: str, looks: Looks, files: Files) -> Section:
    """Draw the charts of a suite and fill its tables; figures and tables are added to `files`."""
    having = [run for run in runs if suite in run.summaries]
    summary = having[0].summaries[suite]
    parts = [Part(run, _NO_CHART, run.summaries[suite].figures) for run in having]
    download = _table(figures_csv(parts), words.slug(suite), files)
    charts = [
        _view(f"{words.slug(suite)}-{number}-{words.slug(shared.chart.title)}", shared, looks, files)
        for number, shared in enumerate(shared_charts(runs, suite), start=1)
    ]
    return Section(
        suite=suite,
        title=summary.title,
        paper=summary.paper,
        charts=tuple(charts),
        table=figure_table(parts),
        download=download,
        notes=by_run([(run.label, run.summaries[suite].notes) for run in having]),
        limits=by_run([(run.label, run.summaries[suite].limits) for run in having]),
        missing=tuple(run.label for run in runs if run not in having),
    )


def by_run(texts: Sequence[tuple[str, Sequence[str]]]) -> tuple[tuple[str, str], ...]:
    """Sentences with the run that says them; what all runs say, or the only one, is said once and of none."""
    said = dict.fromkeys(text for _, each in texts for text in each if text)
    speakers = {text: [label for label, each in texts if text in each] for text in said}
    return tuple(("" if len(each) == len(texts) else ", ".join(each), text) for text, each in speakers.items())


def _view(name: str, shared: Shared, looks: Looks, files: Files) -> ChartView:
    chart = shared.chart
    captions = by_run([(part.run.label, [part.chart.caption]) for part in shared.parts])
    download = _table(points_csv(shared) if chart.kind in _POINTS else figures_csv(shared.parts), name, files)
    view = {"id": name, "title": chart.title, "captions": captions, "download": download}
    if chart.kind == "table":
        found = pivots(shared)
        table = figure_table(shared.parts) if found is None else None
        return ChartView(**view, remarks=tuple(_remarks(shared, None)), pivots=tuple(found or ()), table=table)
    drawn = drawing(shared, looks)
    if drawn is None:
        return ChartView(**view, remarks=("Nothing to draw: the run has none of these figures.",))
    figure = _drawn(drawn, WIDE, name)
    files[f"figures/{name}.svg"] = svg_file(figure, name)
    files[f"figures/{name}.png"] = png_file(figure)
    narrow = None if chart.kind == "heatmap" else _drawn(drawn, NARROW, name)
    return ChartView(
        **view,
        remarks=tuple(_remarks(shared, drawn)),
        description=_description(drawn),
        wide=(image(figure, name, "light"), image(figure, name, "dark")),
        narrow=(image(narrow, name, "light"), image(narrow, name, "dark")) if narrow else (),
    )


def _drawn(drawn: Drawing, width: int, name: str):
    try:
        return draw(drawn, width)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ConfigError(
            f"the chart {name!r} cannot be drawn from its figures ({error}); mend the suite that wrote them"
        ) from error


def _remarks(shared: Shared, drawn: Drawing | None) -> Iterator[str]:
    figures = [figure for part in shared.parts for figure in part.figures]
    dots = [dot for panel in drawn.panels for dot in panel.dots] if drawn else figures
    counts = [each.answers for each in dots if each.answers]
    if counts:
        yield f"n = {words.span(counts)}"
    if any(figure.interval for figure in figures) and shared.chart.kind in ("line", "bars", "table"):
        yield "95 % intervals"
    if shared.chart.kind == "scatter" and not shared.chart.x and drawn is not None:  # each dot is an answer
        sizes = [len(series.dots) for panel in drawn.panels for series in panel.series]
        yield f"n = {words.span(sizes)} a series"
    judges = dict.fromkeys(figure.judge for figure in figures if figure.judge)
    if judges:
        yield f"judged by {', '.join(judges)}"


def _description(drawn: Drawing) -> str:
    """What the figure shows, for those who cannot see it; the numbers themselves are in the section's table."""
    names = list(dict.fromkeys(series.label for panel in drawn.panels for series in panel.series))
    parts = [_KINDS[drawn.kind]]
    if drawn.kind in ("line", "bars", "heatmap"):
        values = ", ".join(dict.fromkeys(value_axis(panel, 200) for panel in drawn.panels))
        parts.append(f"of {values}" + (f" by {drawn.x}" if drawn.x else ""))
    listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return f"{' '.join(parts)}. Shown: {listed}. The numbers are in the table of this section."


def _table(text: str, name: str, files: Files) -> str:
    """Add a table to the files; return a link that holds it whole."""
    files[f"tables/{name}.csv"] = text.encode()
    return "data:text/csv;base64," + base64.b64encode(text.encode()).decode()
