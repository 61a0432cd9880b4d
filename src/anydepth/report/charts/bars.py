"""Bars that lie, so that each has its name beside it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anydepth.report import words
from anydepth.report.charts.canvas import SIZE, WIDE, canvas, heading, shortened, value_scale
from anydepth.report.drawing import Dot, Drawing, Panel, Series, value_axis
from anydepth.report.palette import AXIS, MUTED, TEXT, colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST = 42
"""Letters of a name beside a bar."""


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of the chart: a heading, or a bar with its name."""

    at: float
    name: str
    series: Series | None = None
    dot: Dot | None = None


def draw(drawing: Drawing, width: int) -> "Figure":
    """Draw one bar an `x` and series; names stand beside the bars where there is room, else above them."""
    wide = width >= WIDE
    rows = [_rows(panel, drawing.x, 20 if wide else 34) for panel in drawing.panels]
    heights = [max(row.at for row in each) + (18 if wide else 32) for each in rows]
    extra = 48.0 + (26 if any(panel.title for panel in drawing.panels) else 0)
    figure = canvas(width, sum(heights) + extra * len(rows))
    spots = figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, panel, each, height in zip(spots, drawing.panels, rows, heights, strict=True):
        heading(axes, panel.title)
        _panel(axes, panel, each, wide=wide)
        axes.set_ylim(height - 4, -4)
    return figure


def _rows(panel: Panel, x: str, step: float) -> list[_Row]:
    """The lines from above, each at its height in pixels."""
    grouped = len(panel.series) > 1
    rows, at = [], 8.0
    for place in panel.places:
        name = words.about(x.partition(" (")[0], place)
        if grouped:
            rows.append(_Row(at, name))
            at += 20
        for series in panel.series:
            for dot in series.dots:
                if dot.x == place:
                    rows.append(_Row(at, series.label if grouped else name, series, dot))
                    at += step
        at += 10 if grouped else 0
    return rows


def _panel(axes: "Axes", panel: Panel, rows: list[_Row], *, wide: bool) -> None:
    value_scale(axes.xaxis, axes.set_xlim, panel.unit, [*panel.numbers, 0.0])
    if panel.unit == "auroc":
        axes.set_xlim(0, 1.02)
        axes.axvline(0.5, color=AXIS.light, linewidth=1, linestyle=(0, (2, 3)))
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    axes.set_xlim(low, high + (high - low) * (0.12 if wide else 0.24))  # for the numbers behind the bars
    axes.set_xticks(ticks)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.axvline(0, color=AXIS.light, linewidth=1)
    for row in rows:
        _row(axes, panel, row, wide=wide)
    beside = [row for row in rows if row.dot and wide]
    axes.set_yticks([row.at for row in beside], [shortened(row.name, LONGEST) for row in beside])
    axes.set_xlabel(value_axis(panel))


def _row(axes: "Axes", panel: Panel, row: _Row, *, wide: bool) -> None:
    beside: Any = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
    if row.dot is None or row.series is None:
        axes.annotate(
            shortened(row.name, 90 if wide else 38), (0, row.at), fontweight="bold", color=TEXT.light, **beside
        )
        return
    at = row.at if wide else row.at + 15
    if not wide:
        axes.annotate(shortened(row.name, LONGEST), (0, row.at), color=MUTED.light, **beside)
    if row.dot.value is not None:
        axes.barh(at, row.dot.value, height=13, color=colour(row.series.look), alpha=0.85, linewidth=0)
    end = row.dot.value or 0.0
    if row.dot.low is not None and row.dot.high is not None:
        axes.hlines(at, row.dot.low, row.dot.high, color=TEXT.light, linewidth=1.4, zorder=3)
        axes.vlines([row.dot.low, row.dot.high], at - 4, at + 4, color=TEXT.light, linewidth=1.4, zorder=3)
        end = max(end, row.dot.high)
    text = words.amount(row.dot.value, panel.unit) if row.dot.value is not None else "nothing to measure"
    axes.annotate(text, (max(end, 0), at), fontsize=SIZE - 1, **(beside | {"xytext": (6, 0)}))
