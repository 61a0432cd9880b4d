"""Turn a drawn figure into files, and into images that are part of the page."""

import base64
import io
import re
from typing import TYPE_CHECKING, Literal

from anydepth.report.charts.canvas import style
from anydepth.report.palette import PAINTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PNG_SCALE = 2
"""Pixels of a PNG for one of the page."""

_POINTS = re.compile(r'(width|height)="([\d.]+)pt"')
_DARK = {paint.light: paint.dark for paint in PAINTS}
_COLOUR = re.compile("|".join(_DARK))


def svg_file(figure: "Figure", salt: str, face: str = "#ffffff") -> bytes:
    """The figure as an SVG file with the colours of a light page; the same bytes every time."""
    import matplotlib

    target = io.BytesIO()
    with style(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(target, format="svg", facecolor=face, metadata={"Date": None, "Creator": None})
    return target.getvalue()


def png_file(figure: "Figure") -> bytes:
    """The figure as a PNG file on white."""
    target = io.BytesIO()
    with style():
        figure.savefig(target, format="png", dpi=72 * PNG_SCALE, facecolor="#ffffff", metadata={"Software": None})
    return target.getvalue()


def image(figure: "Figure", salt: str, scheme: Literal["light", "dark"]) -> str:
    """The figure as an address that holds it whole: an SVG in the colours of `scheme`, one unit per pixel."""
    text = _POINTS.sub(r'\1="\2"', svg_file(figure, salt, "none").decode(), count=2)
    if scheme == "dark":
        text = _COLOUR.sub(lambda found: _DARK[found[0]], text)
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()
