"""Turn a drawn figure into files, and into markup that takes the colours of the page."""

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from anydepth.report.charts.canvas import style
from anydepth.report.palette import PAINTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PNG_SCALE = 2
"""Pixels of a PNG for one of the page."""

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_VARIABLES = {paint.light: f"var({paint.name})" for paint in PAINTS}
_COLOUR = re.compile("|".join(_VARIABLES))
_FONT = re.compile(r"font-family: [^;]+;? ?")
_NO_DATES = {"Date": None, "Creator": None}


def svg_file(figure: "Figure", salt: str) -> bytes:
    """The figure as an SVG file with fixed colours on white; the same bytes every time."""
    return _saved(figure, salt, "#ffffff")


def png_file(figure: "Figure") -> bytes:
    """The figure as a PNG file on white."""
    target = io.BytesIO()
    with style():
        figure.savefig(target, format="png", dpi=72 * PNG_SCALE, facecolor="#ffffff", metadata={"Software": None})
    return target.getvalue()


def svg_markup(figure: "Figure", salt: str, title: str, description: str) -> str:
    """The figure as markup for the page: its colours and fonts are those of the page, its ids begin with `salt`."""
    root = ElementTree.fromstring(_saved(figure, salt, "none"))
    _clean(root)
    _own_ids(root, salt)
    for element in root.iter():
        _own_style(element)
    _name(root, salt, title, description)
    return ElementTree.tostring(root, encoding="unicode")


def _saved(figure: "Figure", salt: str, face: str) -> bytes:
    import matplotlib

    target = io.BytesIO()
    with style(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(target, format="svg", facecolor=face, metadata=_NO_DATES)
    return target.getvalue()


def _clean(root: ElementTree.Element) -> None:
    """Take out what has no place in a page: metadata, and the style sheet that would hold for the whole page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style") or (child.tag == f"{_SVG}defs" and not _kept(child)):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.tail = None
        element.text = element.text if element.tag == "text" else None
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
        if "d" in element.attrib:
            element.set("d", " ".join(element.attrib["d"].split()))
        if _HREF in element.attrib:
            element.set("href", element.attrib.pop(_HREF))
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": root.attrib["viewBox"],
        "width": width,
        "height": height,
        "stroke-linejoin": "round",
        "stroke-linecap": "butt",
    }


def _kept(defs: ElementTree.Element) -> bool:
    return any(child.tag != f"{_SVG}style" for child in defs)


def _own_ids(root: ElementTree.Element, salt: str) -> None:
    """Many figures share a page, so ids that are referred to get a prefix, and the others go."""
    used = {found for element in root.iter() for found in _references(element)}
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name in used:
            element.set("id", f"{salt}-{name}")
        for key, value in element.attrib.items():
            if key == "href" and value.startswith("#"):
                element.set(key, f"#{salt}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{salt}-"))


def _references(element: ElementTree.Element) -> list[str]:
    found = [element.attrib["href"][1:]] if element.attrib.get("href", "").startswith("#") else []
    return found + [name for value in element.attrib.values() for name in re.findall(r"url\(#([^)]+)\)", value)]


def _own_style(element: ElementTree.Element) -> None:
    """Colours become those of the page, in whichever scheme it is read; the page chooses the font too."""
    style = element.attrib.get("style")
    if style is None:
        return
    element.set("style", _COLOUR.sub(lambda found: _VARIABLES[found[0]], _FONT.sub("", style)))


def _name(root: ElementTree.Element, salt: str, title: str, description: str) -> None:
    """Say what the figure shows to those who cannot see it."""
    root.set("role", "img")
    root.set("aria-labelledby", f"{salt}-title {salt}-desc")
    for tag, text in (("desc", description), ("title", title)):
        element = ElementTree.Element(tag, {"id": f"{salt}-{tag}"})
        element.text = text
        root.insert(0, element)
