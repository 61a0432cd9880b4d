"""From a drawn figure to files and markup: the same bytes every time, the colours of the page, no id twice."""

import re
from xml.etree import ElementTree

import pytest

from anydepth.report.charts import NARROW, WIDE, draw
from anydepth.report.drawing import Dot, Drawing, Panel, Series
from anydepth.report.palette import PAINTS
from anydepth.report.svg import png_file, svg_file, svg_markup


def line(label: str = "probe", title: str = "") -> Drawing:
    series = [
        Series(name, look, look, tuple(Dot(depth, 0.9 / (1 + depth), 0.1, 0.95, 40) for depth in (0, 5, 25)))
        for look, name in enumerate((label, "base"))
    ]
    return Drawing("line", "L", (Panel(title, "share", tuple(series), "halted"),), "depth (tokens)", log_x=True)


def markup(drawing: Drawing, salt: str = "one", title: str = "T", description: str = "D") -> str:
    return svg_markup(draw(drawing), salt, title, description)


def test_the_same_drawing_gives_the_same_bytes() -> None:
    first, second = draw(line()), draw(line())
    assert svg_file(first, "a") == svg_file(second, "a")
    assert png_file(first) == png_file(second)
    assert svg_markup(first, "a", "T", "D") == svg_markup(second, "a", "T", "D")
    text = svg_file(first, "a").decode()
    assert "Date" not in text and "date" not in text and "Creator" not in text and "Matplotlib" not in text
    assert png_file(first).startswith(b"\x89PNG") and b"Software" not in png_file(first)


def test_the_page_gives_the_colours_and_the_font() -> None:
    text = markup(line())
    assert {f"var({name})" for name in ("--series-1", "--series-2", "--grid", "--text", "--muted")} <= set(
        re.findall(r"var\(--[a-z0-9-]+\)", text)
    )
    assert [paint.light for paint in PAINTS if paint.light in text] == []
    assert "font-family" not in text and "<style" not in text and "metadata" not in text and "rotate(-0" not in text
    assert "font-size: 12px" in text
    file = svg_file(draw(line()), "a").decode()
    assert "var(" not in file and PAINTS[-1].light not in file and "#0a4fc4" in file


def test_text_stays_text_and_is_never_markup() -> None:
    text = markup(line("<script>$x^2$ & _y", "a < b"), title="</title><script>", description='"quoted" & <b>')
    assert "<script>" not in text
    root = ElementTree.fromstring(text)
    words = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"<script>$x^2$ & _y", "a < b", "depth (tokens)", "halted (share of answers)"} <= set(words)


def test_the_figure_has_a_name_and_a_description() -> None:
    root = ElementTree.fromstring(markup(line(), "salt", "Refused by depth", "Lines of refusals."))
    ids = {element.get("id"): "".join(element.itertext()) for element in root.iter() if element.get("id")}
    assert root.get("role") == "img"
    assert [ids[each] for each in root.attrib["aria-labelledby"].split()] == ["Refused by depth", "Lines of refusals."]


def test_ids_are_referred_to_and_are_of_one_figure_only() -> None:
    found = []
    for salt in ("one", "two"):
        text = markup(line(), salt)
        ids = re.findall(r' id="([^"]+)"', text)
        used = re.findall(r'href="#([^"]+)"', text) + re.findall(r"url\(#([^)]+)\)", text)
        assert len(ids) == len(set(ids))
        assert set(used) | {f"{salt}-title", f"{salt}-desc"} == set(ids)
        found.append(set(ids))
    assert found[0].isdisjoint(found[1])


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_one_unit_is_one_pixel(width: int) -> None:
    root = ElementTree.fromstring(svg_markup(draw(line(), width), "a", "T", "D"))
    assert float(root.attrib["width"]) == width
    assert root.attrib["viewBox"].split()[2] == root.attrib["width"]
