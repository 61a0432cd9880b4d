"""Values by column and row, each written into its cell."""

from typing import TYPE_CHECKING

from anydepth.report import words
from anydepth.report.charts.canvas import LETTER, SIZE, canvas, heading
from anydepth.report.drawing import Drawing, Panel
from anydepth.report.palette import BLANK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = (46, 25)
"""Width and height of a cell, in pixels."""

COLOURS = "cividis"
"""Reads the same to the colour-blind, and in grey."""

ENDS = {"auroc": (0.5, 1.0), "share": (0.0, 1.0)}
"""Which values the darkest and the lightest colour stand for, the same in every report, in units that allow it."""


def draw(drawing: Drawing, _width: int) -> "Figure":
    """Draw one field of cells a panel; wider than the page if there are many columns, where it scrolls."""
    rows = [len(panel.series) for panel in drawing.panels]
    columns = [len(panel.places) for panel in drawing.panels]
    side = 34 + LETTER * max(len(series.label) for panel in drawing.panels for series in panel.series)
    around = 52 + (26 if any(panel.title for panel in drawing.panels) else 0)
    wide = max(side + CELL[0] * max(columns), 8 * LETTER + LETTER * max(len(panel.title) for panel in drawing.panels))
    figure = canvas(wide + 14, CELL[1] * sum(rows) + around * len(rows))
    spots = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
    for axes, panel in zip(spots, drawing.panels, strict=True):
        heading(axes, panel.title)
        _panel(axes, drawing, panel)
    return figure


def _panel(axes: "Axes", drawing: Drawing, panel: Panel) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    columns = panel.places
    values = [dot.value for dot in panel.dots if dot.value is not None] or [0.0, 1.0]
    scale, paints = Normalize(*ENDS.get(panel.unit, (min(values), max(values))), clip=True), colormaps[COLOURS]
    for row, series in enumerate(panel.series):
        known = {dot.x: dot.value for dot in series.dots}
        for column, place in enumerate(columns):
            value = known.get(place)
            red, green, blue, _ = paints(scale(value)) if value is not None else (1, 1, 1, 1)
            face = (red, green, blue) if value is not None else BLANK.light
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor=face, linewidth=0))
            dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5
            ink = MUTED.light if value is None else "#ffffff" if dark else "#000000"
            axes.text(
                column + 0.5,
                row + 0.5,
                _short(value, panel.unit),
                ha="center",
                va="center",
                fontsize=SIZE - 1,
                color=ink,
            )
    axes.set(xlim=(0, len(columns)), ylim=(0, len(panel.series)), xlabel=drawing.x, ylabel=drawing.y)
    if not all(_is_number(series.label) for series in panel.series):
        axes.invert_yaxis()  # names are read from above, numbers rise
    axes.set_xticks([n + 0.5 for n in range(len(columns))], [words.axis_value(place) for place in columns])
    axes.set_yticks([n + 0.5 for n in range(len(panel.series))], [series.label for series in panel.series])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _is_number(label: str) -> bool:
    return label.translate(str.maketrans("", "", ",.−")).isdigit()


def _short(value: float | None, unit: str) -> str:
    """A value that fits a cell."""
    if value is None:
        return words.NOTHING
    if unit == "share":
        return (
            words.amount(round(value, 3), unit).removesuffix(words.PERCENT) if 0 < value < 1 else f"{100 * value:.0f}"
        )
    return f"{value:.2f}".replace("-", "−") if unit == "auroc" else words.amount(value, unit)
