"""Lines with their intervals."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from anydepth.report import words
from anydepth.report.charts.canvas import (
    LETTER,
    WIDE,
    canvas,
    columns_of,
    grid,
    height_of,
    legend,
    numbers_of,
    sign,
    value_scale,
)
from anydepth.report.drawing import Dot, Drawing, Panel, Place, in_order, value_axis
from anydepth.report.palette import AXIS, colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BANDS = 4
"""Bands of more lines than this hide each other; whiskers are drawn instead, side by side."""

APART = 3.0
"""Points between the whiskers of neighbouring lines at one place."""


def draw(drawing: Drawing, width: int) -> "Figure":
    """Draw one line a series."""
    figure = canvas(width, height_of(drawing.panels, width, 320 if width >= WIDE else 280))
    extra = legend(figure, drawing.panels, width)
    figure.set_figheight(figure.get_figheight() + extra / 72)
    room = width / columns_of(drawing.panels, width) - 80
    for axes, panel in grid(figure, drawing.panels, width):
        _panel(axes, drawing, panel, room)
    return figure


def _panel(axes: "Axes", drawing: Drawing, panel: Panel, room: float) -> None:
    from matplotlib.transforms import ScaledTranslation

    places = in_order(dot.x for series in panel.series for dot in series.dots)
    where = _positions(places)
    value_scale(axes.yaxis, axes.set_ylim, panel.unit, numbers_of(panel))
    if panel.unit == "auroc":
        axes.axhline(0.5, color=AXIS.light, linewidth=1, linestyle=(0, (2, 3)))
    if axes.get_ylim()[0] < 0 and min(numbers_of(panel), default=0) < 0:
        axes.axhline(0, color=AXIS.light, linewidth=1)
    bands = len(panel.series) <= MOST_BANDS
    for number, series in enumerate(panel.series):
        xs = [where[dot.x] for dot in series.dots]
        axes.update_datalim([(x, dot.value) for x, dot in zip(xs, series.dots, strict=True) if dot.value is not None])
        aside = 0.0 if bands else APART * (number - (len(panel.series) - 1) / 2)
        moved: Any = axes.transData + ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans)
        axes.plot(xs, [_nan(dot.value) for dot in series.dots], **sign(series), zorder=3, transform=moved)
        _intervals(axes, xs, series.dots, colour(series.look), moved, bands=bands and len(xs) > 1)
    _horizontal(axes, places, where, room, log=drawing.log_x)
    axes.set_xlabel(drawing.x)
    axes.set_ylabel(value_axis(panel, 32))


def _intervals(axes: "Axes", xs: Sequence[float], dots: Sequence[Dot], paint: str, moved: Any, *, bands: bool) -> None:
    lows = [_nan(dot.low) for dot in dots]
    highs = [_nan(dot.high) for dot in dots]
    if all(map(math.isnan, lows)):
        return
    if bands:
        axes.fill_between(xs, lows, highs, color=paint, alpha=0.16, linewidth=0)
    else:
        axes.vlines(xs, lows, highs, color=paint, alpha=0.55, linewidth=1.4, transform=moved)


def _positions(places: Sequence[Place]) -> dict[Place, float]:
    """Numbers stand at their place, anything else in a row."""
    if any(isinstance(place, str) for place in places):
        return {place: float(number) for number, place in enumerate(places)}
    return {place: float(place) for place in places}


def _horizontal(axes: "Axes", places: Sequence[Place], where: dict[Place, float], room: float, *, log: bool) -> None:
    from matplotlib.ticker import FuncFormatter

    numeric = not any(isinstance(place, str) for place in places)
    if numeric and log:
        _logarithmic(axes, list(where.values()))
    if numeric and not log:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.axis_value(value)))
        axes.locator_params(axis="x", nbins=max(3, int(room // 70)))
        return
    labels = [words.axis_value(place) for place in places]
    ticks = [(where[place], label) for place, label in zip(places, labels, strict=True)]
    if numeric:
        kept = _spread(axes, ticks, room)
    else:
        kept = ticks
        if sum(map(len, labels)) * LETTER + 8 * len(labels) > room:
            axes.tick_params(axis="x", labelrotation=30)
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right")
    axes.set_xticks([place for place, _ in kept], [label for _, label in kept])
    axes.minorticks_off()


def _logarithmic(axes: "Axes", places: Sequence[float]) -> None:
    """Logarithmic, but for what lies at 0, where answers begin."""
    above = [place for place in places if place > 0]
    if len(above) == len(places):
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=min(above, default=1.0), linscale=0.4)


def _spread(axes: "Axes", ticks: list[tuple[float, str]], room: float) -> list[tuple[float, str]]:
    """Those ticks whose labels do not run into each other, from both ends: the last one is always kept."""
    scale: Any = axes.xaxis.get_transform()
    ends = scale.transform([min(place for place, _ in ticks), max(place for place, _ in ticks)])
    length = (ends[1] - ends[0]) or 1.0
    kept: list[tuple[float, str]] = []
    edge = math.inf
    for place, label in reversed(ticks):
        at = float((scale.transform([place])[0] - ends[0]) / length * room)
        half = len(label) * LETTER / 2 + 4
        if at + half <= edge:
            kept.append((place, label))
            edge = at - half
    return kept[::-1]


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
