"""Pairs of numbers: projections, trade-offs, ROC curves."""

from itertools import combinations
from typing import TYPE_CHECKING, Any

from anydepth.report import words
from anydepth.report.charts.canvas import LETTER, SIZE, columns_of, grid, sign, value_scale
from anydepth.report.drawing import Drawing, Panel, Series
from anydepth.report.palette import AXIS, TEXT, colour, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW, MANY = 20, 400
"""Dots of a series from which on they are drawn smaller."""


def draw(drawing: Drawing, width: int) -> "Figure":
    """Draw the pairs as curves (`roc`) or as dots (`scatter`)."""
    curves = drawing.kind == "roc"
    if curves and len(drawing.panels) == 1:
        width = min(width, 480)  # a square is read best
    room = width / columns_of(drawing.panels, width)
    rings = {
        name: _ring(number)
        for panel in drawing.panels
        for number, name in enumerate(panel.marks)
        if not _named_in_place(panel, room)
    }
    look = {"marker": ""} if curves else {"linestyle": ""}
    figure, spots = grid(drawing.panels, width, 0.92 * min(width, 440), look, rings)
    for axes, panel in spots:
        (_curves if curves else _dots)(axes, drawing, panel)
        _marks(axes, panel, room)
    return figure


def _curves(axes: "Axes", drawing: Drawing, panel: Panel) -> None:
    axes.plot([0, 1], [0, 1], color=AXIS.light, linewidth=1, linestyle=(0, (2, 3)))
    for series in panel.series:
        look: dict[str, Any] = {**sign(series), "marker": ""}
        axes.plot(*_pairs(series), **look)
    value_scale(axes.yaxis, axes.set_ylim, "share", [0, 1])
    value_scale(axes.xaxis, axes.set_xlim, "share", [0, 1])
    if drawing.log_x:
        above = [dot.x for dot in panel.dots if not isinstance(dot.x, str) and dot.x > 0]
        axes.set_xscale("symlog", linthresh=min(above, default=0.01), linscale=0.3)
        axes.set_xlim(0, 1.05)
        ticks = [tick for tick in (0, 0.001, 0.01, 0.1, 1) if tick == 0 or tick >= 0.9 * min(above, default=1)]
        axes.set_xticks(ticks, [f"{words.axis_value(100 * tick)} %" for tick in ticks])
        axes.minorticks_off()
    axes.set(xlabel=drawing.x, ylabel=drawing.y)


def _dots(axes: "Axes", drawing: Drawing, panel: Panel) -> None:
    for series in panel.series:
        xs, ys = _pairs(series)
        few = len(xs) <= FEW
        if few and drawing.x:  # a trade-off: the line leads from one setting to the next
            axes.plot(xs, ys, color=colour(series.look), linewidth=1.2, alpha=0.5)
        axes.scatter(
            xs,
            ys,
            s=56 if few else 26 if len(xs) < MANY else 12,
            marker=marker(series.look),
            color=colour(series.look),
            alpha=1.0 if few else 0.72,
            linewidths=0,
        )
    axes.set(xlabel=drawing.x or "first axis", ylabel=drawing.y or "second axis")
    if drawing.log_x:
        axes.set_xscale("log")
    if not drawing.x:  # a projection: its numbers mean nothing
        axes.tick_params(length=0, labelbottom=False, labelleft=False)


def _pairs(series: Series) -> tuple[list[Any], list[Any]]:
    return [dot.x for dot in series.dots], [dot.value for dot in series.dots]


def _named_in_place(panel: Panel, room: float) -> bool:
    """Whether the names of the marks fit beside them, clear of each other; else the legend has them."""
    if any(len(name) * LETTER >= 0.4 * room for name in panel.marks):
        return False
    dots: list[tuple[Any, Any]] = [(dot.x, dot.value) for dot in panel.dots]
    spans = [max(ends) - min(ends) or 1.0 for ends in zip(*dots, *panel.marks.values(), strict=True)]
    return not any(
        abs(one[0] - other[0]) < 0.4 * spans[0] and abs(one[1] - other[1]) < 0.08 * spans[1]
        for one, other in combinations(panel.marks.values(), 2)
    )


def _marks(axes: "Axes", panel: Panel, room: float) -> None:
    """Mark single points, with their names beside them where these fit."""
    for number, (name, (x, y)) in enumerate(panel.marks.items()):
        axes.plot([x], [y], zorder=4, **_ring(number))
        if not _named_in_place(panel, room):
            continue
        across = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[0]
        right = across < 0.5
        label = axes.annotate(
            name,
            (x, y),
            (11, -4) if right else (-11, -4),
            textcoords="offset points",
            ha="left" if right else "right",
            va="top",
            fontsize=SIZE,
            fontweight="bold",
            color=TEXT.light,
        )
        label.set_in_layout(False)


def _ring(number: int) -> dict[str, Any]:
    return {
        "linestyle": "",
        "marker": marker(number),
        "markersize": 11,
        "markerfacecolor": "none",
        "markeredgecolor": TEXT.light,
        "markeredgewidth": 2,
    }
