"""Draw what a chart shows, once for a wide page and once for a narrow one."""

from typing import TYPE_CHECKING

from anydepth.report.charts import bars, clouds, heatmap, histogram, lines
from anydepth.report.charts.canvas import NARROW as NARROW
from anydepth.report.charts.canvas import WIDE, style
from anydepth.report.drawing import Drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS = {
    "line": lines.draw,
    "bars": bars.draw,
    "heatmap": heatmap.draw,
    "scatter": clouds.draw,
    "roc": clouds.draw,
    "histogram": histogram.draw,
}


def draw(drawing: Drawing, width: int = WIDE) -> "Figure":
    """The figure of a drawing, `width` pixels wide; a heat map is as wide as its columns need."""
    with style():
        figure = _KINDS[drawing.kind](drawing, width)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # every file has the layout that was found now
        return figure
