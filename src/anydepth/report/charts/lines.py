"""Lines with their intervals."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from anydepth.report import words
from anydepth.report.charts.canvas import LETTER, WIDE, columns_of, grid, sign, value_scale
from anydepth.report.drawing import Drawing, Panel, Place, value_axis
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
    figure, spots = grid(drawing.panels, width, 320 if width >= WIDE else 280)
    room = width / columns_of(drawing.panels, width) - 80
    for axes, panel in spots:
        _panel(axes, drawing, panel, room)
    return figure


def _panel(axes: "Axes", drawing: Drawing, panel: Panel, room: float) -> None:
    from matplotlib.transforms import ScaledTranslation

    named = any(isinstance(place, str) for place in panel.places)
    where = {place: float(number if named else place) for number, place in enumerate(panel.places)}
    value_scale(axes.yaxis, axes.set_ylim, panel.unit, panel.numbers)
    if panel.unit == "auroc":
        axes.axhline(0.5, color=AXIS.light, linewidth=1, linestyle=(0, (2, 3)))
    if axes.get_ylim()[0] < 0 and min(panel.numbers, default=0) < 0:
        axes.axhline(0, color=AXIS.light, linewidth=1)
    bands = len(panel.series) <= MOST_BANDS
    for number, series in enumerate(panel.series):
        xs = [where[dot.x] for dot in series.dots]
        axes.update_datalim([(x, dot.value) for x, dot in zip(xs, series.dots, strict=True) if dot.value is not None])
        aside = 0.0 if bands else APART * (number - (len(panel.series) - 1) / 2)
        moved: Any = axes.transData + ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans)
        values, lows, highs = np.array([(dot.value, dot.low, dot.high) for dot in series.dots], float).T  # None is NaN
        axes.plot(xs, values, **sign(series), zorder=3, transform=moved)
        if np.isnan(lows).all():
            continue
        if bands and len(xs) > 1:
            axes.fill_between(xs, lows, highs, color=colour(series.look), alpha=0.16, linewidth=0)
        else:
            axes.vlines(xs, lows, highs, color=colour(series.look), alpha=0.55, linewidth=1.4, transform=moved)
    _horizontal(axes, where, room, named=named, log=drawing.log_x)
    axes.set_xlabel(drawing.x)
    axes.set_ylabel(value_axis(panel, 32))


def _horizontal(axes: "Axes", where: Mapping[Place, float], room: float, *, named: bool, log: bool) -> None:
    """Scale and ticks of the places: logarithmic, if wanted, but for what lies at 0, where answers begin."""
    if not named and not log:
        axes.xaxis.set_major_formatter(lambda value, _: words.axis_value(value))
        axes.locator_params(axis="x", nbins=max(3, int(room // 70)))
        return
    ticks = [(at, words.axis_value(place)) for place, at in where.items()]
    if not named:
        above = [at for at in where.values() if at > 0]
        if len(above) == len(where):
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=min(above, default=1.0), linscale=0.4)
        ticks = _spread(axes, ticks, room)
    elif sum(len(label) * LETTER + 8 for _, label in ticks) > room:
        axes.tick_params(axis="x", labelrotation=30)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
    axes.set_xticks([at for at, _ in ticks], [label for _, label in ticks])
    axes.minorticks_off()


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
