"""What all figures share: sizes, fonts, axes and legends."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from anydepth.extras import require
from anydepth.report import words
from anydepth.report.drawing import Panel, Series
from anydepth.report.palette import AXIS, DASHES, GRID, MUTED, TEXT, colour, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, NARROW = 900, 322
"""Widths in pixels: of a column of text, and of a phone without its margins."""

SIZE = 12
"""Height of the letters, in pixels."""

LETTER = 6.6
"""Width of an average letter, in pixels."""

PERCENT_FROM = 0.25
"""Shares that all lie below this are drawn on an axis of their own size, not from 0 to 100 %."""


def style() -> AbstractContextManager[None]:
    """Our settings on top of the library's own, whatever the user's are."""
    require("matplotlib", extra="report")
    from matplotlib import style as styles

    return styles.context(["default", _STYLE], after_reset=True)


def canvas(width: float, height: float) -> "Figure":
    """An empty figure of a size in pixels, one unit of the SVG each."""
    from matplotlib.figure import Figure

    return Figure((width / 72, height / 72), dpi=72, layout="constrained")


def grid(
    panels: Sequence[Panel],
    width: int,
    height: float,
    look: Mapping[str, Any] | None = None,
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> "tuple[Figure, list[tuple[Axes, Panel]]]":
    """A figure with its legend, and axes for the panels, each `height` pixels high: two in a row where there is room.

    The titles of the panels are written. `look` changes the signs of all series in the legend, `more` adds to them.
    """
    columns = columns_of(panels, width)
    rows = -(-len(panels) // columns)
    figure = canvas(width, height * rows)
    _legend(figure, panels, width, look or {}, more or {})
    spots = figure.subplots(rows, columns, squeeze=False)
    for spot in spots.flat[len(panels) :]:
        spot.remove()
    found = list(zip(spots.flat, panels, strict=False))
    for spot, panel in found:
        heading(spot, panel.title)
    return figure, found


def columns_of(panels: Sequence[Panel], width: int) -> int:
    """How many panels stand side by side."""
    return 2 if width >= WIDE and len(panels) > 1 else 1


def heading(axes: "Axes", title: str) -> None:
    """Write the title of a panel, if it has one."""
    if title:
        axes.set_title(title, loc="left", fontsize=SIZE, fontweight="bold", color=TEXT.light)


def _legend(
    figure: "Figure",
    panels: Sequence[Panel],
    width: int,
    look: Mapping[str, Any],
    more: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write above the axes which colour, marker and dash is which series, and `more`; the figure grows by as much."""
    from matplotlib.lines import Line2D

    known = {series.label: {**sign(series), **look} for panel in panels for series in panel.series}
    shown: dict[str, Mapping[str, Any]] = {**(known if len(known) > 1 else {}), **more}
    if not shown:
        return
    longest = max(map(len, shown))
    columns = max(1, min(len(shown), 4, int(width // (longest * LETTER + 62))))
    handles = [Line2D([], [], label=label, **each) for label, each in shown.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)
    figure.set_figheight(figure.get_figheight() + (22 * -(-len(shown) // columns) + 10) / 72)


def sign(series: Series) -> dict[str, Any]:
    """Colour, marker and dashes of a series."""
    return {
        "color": colour(series.look),
        "marker": marker(series.look),
        "linestyle": DASHES[series.dash % len(DASHES)],
        "markersize": 6,
        "linewidth": 1.8,
    }


def value_scale(axis: Any, limits: Any, unit: str, numbers: Sequence[float]) -> None:
    """Scale and ticks of an axis of values: shares in per cent, AUROC from chance to 1, the others from 0."""
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    if unit == "share":
        axis.set_major_formatter(lambda value, _: f"{words.axis_value(round(100 * value, 6))} %")
    else:
        axis.set_major_formatter(lambda value, _: words.axis_value(value))
    if unit == "auroc":
        limits(min(0.45, low - 0.03), 1.02)
    elif unit == "share" and low >= 0 and high >= PERCENT_FROM:
        limits(-0.02, max(1.02, high * 1.02))
    else:
        low, high = min(low, 0), max(high, 0)
        high = high if high > low else 1.0
        room = 0.06 * (high - low)
        limits(low - (room if low < 0 else room / 3), high + room)


def shortened(label: str, longest: int) -> str:
    """A label that fits; the tables have it whole."""
    return label if len(label) <= longest else label[: longest - 1].rstrip() + "…"


_STYLE: dict[str, Any] = {
    "text.parse_math": False,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": SIZE,
    "legend.frameon": False,
    "legend.borderaxespad": 0.2,
    "legend.handlelength": 2.6,
    "legend.columnspacing": 1.6,
    "text.color": TEXT.light,
    "axes.labelcolor": MUTED.light,
    "xtick.labelcolor": MUTED.light,
    "ytick.labelcolor": MUTED.light,
    "xtick.color": AXIS.light,
    "ytick.color": AXIS.light,
    "axes.edgecolor": AXIS.light,
    "axes.linewidth": 1.0,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlepad": 8.0,
    "grid.color": GRID.light,
    "grid.linewidth": 1.0,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.04,
}
