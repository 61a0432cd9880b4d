"""How numbers are distributed, one row a series."""

from typing import TYPE_CHECKING

import numpy as np

from anydepth.report import words
from anydepth.report.charts.canvas import SIZE, WIDE, canvas, shortened, value_scale
from anydepth.report.drawing import Drawing
from anydepth.report.palette import MUTED, TEXT, colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 30
"""At most so many."""

ROW, LINE = 92, 15
"""Heights of a row and of another line over it, in pixels."""


def draw(drawing: Drawing, width: int) -> "Figure":
    """Draw the share of answers in each bin; the rows share their axes, so that they can be compared."""
    panel, wide = drawing.panels[0], width >= WIDE
    rows = [np.array([float(dot.x) for dot in series.dots]) for series in panel.series]
    edges = edges_of(np.concatenate(rows), log=drawing.log_x)
    heights = [np.histogram(values, edges)[0] / len(values) for values in rows]
    top = max(float(each.max()) for each in heights)
    figure = canvas(width, (ROW + (0 if wide else LINE)) * len(rows) + 46)
    spots = figure.subplots(len(rows), 1, squeeze=False, sharex=True)[:, 0]
    for axes, series, values, each in zip(spots, panel.series, rows, heights, strict=True):
        if drawing.log_x:
            axes.set_xscale("symlog", linthresh=1.0, linscale=0.4)
        axes.stairs(each, edges, fill=True, color=colour(series.look), alpha=0.8, linewidth=0)
        _label(axes, series.label, values, wide=wide)
        axes.set_ylim(0, top * 1.08)
        for name, (x, _) in panel.marks.items():
            axes.axvline(x, color=TEXT.light, linewidth=1.4, linestyle=(0, (4, 2)))
            axes.annotate(name, (x, top), (4, 0), textcoords="offset points", va="top", fontsize=SIZE - 1)
    spots[-1].set_xlabel(drawing.x)
    figure.supylabel("share of answers", fontsize=SIZE, color=MUTED.light)
    return figure


def _label(axes: "Axes", name: str, values: np.ndarray, *, wide: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    value_scale(axes.yaxis, axes.set_ylim, "share", [0.0, 1.0])
    axes.yaxis.set_major_locator(MaxNLocator(3))
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=bool(np.all(values == np.round(values)))))
    axes.xaxis.set_major_formatter(lambda value, _: words.axis_value(value))
    facts = f"n = {len(values):,}, median {words.amount(float(np.median(values)))}"
    title = f"{name}  ({facts})" if wide else f"{shortened(name, 42)}\n{facts}"
    axes.set_title(title, loc="left", fontsize=SIZE, color=TEXT.light, pad=4)


def edges_of(values: np.ndarray, *, log: bool) -> np.ndarray:
    """Bins that all series share; whole numbers get bins around whole numbers."""
    low, high = float(values.min()), float(values.max())
    if log and low >= 0:
        edges = np.expm1(np.linspace(np.log1p(low), np.log1p(max(high, low + 1)), BINS + 1))
        edges[0], edges[-1] = low, max(high, low + 1)  # rounding must not lose the smallest or the largest
        return edges
    if np.all(values == np.round(values)):
        high = max(high, low + 4)
        step = max(1, int(np.ceil((high - low + 1) / BINS)))
        return np.arange(low, high + step + 0.5, step) - 0.5
    return np.linspace(low, high, BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
