"""From a drawn figure to files and images: the same bytes every time, the colours of the page."""

import base64
import re
from typing import Literal
from xml.etree import ElementTree

import pytest

from anydepth.report.charts import NARROW, WIDE, draw
from anydepth.report.drawing import Dot, Drawing, Panel, Series
from anydepth.report.palette import GRID, MUTED, PAINTS, SERIES, TEXT
from anydepth.report.svg import image, png_file, svg_file


def line(label: str = "probe", title: str = "") -> Drawing:
    series = [
        Series(name, look, look, tuple(Dot(depth, 0.9 / (1 + depth), 0.1, 0.95, 40) for depth in (0, 5, 25)))
        for look, name in enumerate((label, "base"))
    ]
    return Drawing("line", (Panel(title, "share", tuple(series), "halted"),), "depth (tokens)", log_x=True)


def shown(drawing: Drawing, scheme: Literal["light", "dark"] = "light", width: int = WIDE) -> str:
    """The SVG that the page's image holds."""
    kind, _, content = image(draw(drawing, width), "a", scheme).partition(",")
    assert kind == "data:image/svg+xml;base64"
    return base64.b64decode(content).decode()


def test_the_same_drawing_gives_the_same_bytes() -> None:
    first, second = draw(line()), draw(line())
    assert svg_file(first, "a") == svg_file(second, "a")
    assert png_file(first) == png_file(second)
    assert image(first, "a", "dark") == image(second, "a", "dark")
    text = svg_file(first, "a").decode()
    assert "Date" not in text and "date" not in text and "Creator" not in text and "Matplotlib" not in text
    assert png_file(first).startswith(b"\x89PNG") and b"Software" not in png_file(first)


def test_an_image_has_the_colours_of_its_scheme() -> None:
    light, dark = shown(line()), shown(line(), "dark")
    assert [paint.name for paint in PAINTS if paint.light in dark] == []
    for paint in (SERIES[0], SERIES[1], GRID, TEXT, MUTED):
        assert paint.light in light and paint.dark in dark
    assert re.sub("#[0-9a-f]{6}", "", light) == re.sub("#[0-9a-f]{6}", "", dark), "nothing but the colours differs"
    assert SERIES[0].light in svg_file(draw(line()), "a").decode()


def test_text_stays_text_and_is_never_markup() -> None:
    text = shown(line("<script>$x^2$ & _y", "a < b"))
    assert "<script>" not in text
    root = ElementTree.fromstring(text)
    words = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"<script>$x^2$ & _y", "a < b", "depth (tokens)", "halted (share of answers)"} <= set(words)


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_one_unit_is_one_pixel(width: int) -> None:
    root = ElementTree.fromstring(shown(line(), width=width))
    assert float(root.attrib["width"]) == width
    assert root.attrib["viewBox"].split()[2] == root.attrib["width"]
