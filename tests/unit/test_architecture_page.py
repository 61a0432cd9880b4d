"""docs/architecture.md says what the code is."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "anydepth"
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
WALKS = {
    title: re.findall(r"^\| \d+ \| `([\w/]+\.py)` \| `([\w.]+)` \|", text, re.M)
    for title, text in re.findall(r"^### (.+)\n((?:(?!^#).*\n)*)", PAGE, re.M)
}


def defined(path: Path) -> set[str]:
    """Functions of a file, and methods as `Class.method`."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    body = ast.parse(path.read_text("utf-8")).body
    found = {node.name for node in body if isinstance(node, functions)}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, functions)}
    return found


@pytest.mark.parametrize("title", WALKS)
def test_a_walk_has_stops_that_exist_and_none_twice(title: str) -> None:
    stops = WALKS[title]
    assert len(stops) > 10
    assert len(set(stops)) == len(stops), "a stop occurs twice"
    assert [stop for stop in stops if stop[1] not in defined(SOURCE / stop[0])] == []


def test_there_are_three_walks() -> None:
    assert list(WALKS) == ["A guarded answer of the library", "A served request", "A step of vLLM"]


def test_every_room_and_file_is_in_the_layout() -> None:
    rows = dict(re.findall(r"^\| (`[\w/]+/`)(?:, `[\w/]+/`)? \| (.+) \|$", PAGE[PAGE.index("## Layout") :], re.M))
    described = ("`report/`", "`evals/suites/`", "`cli/`", "`data/`")  # too many files of one kind to list
    rooms = {folder for folder in SOURCE.rglob("*") if (folder / "__init__.py").exists()} - {SOURCE}
    listed = {SOURCE / name.strip("`") for name in rows} | {SOURCE / "report" / "charts", SOURCE}
    assert rooms <= listed | {SOURCE / "probes"}, "a room is not in the layout"
    for name, text in rows.items():
        if name not in described:
            folder = SOURCE if name == "`anydepth/`" else SOURCE / name.strip("`")
            files = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
            assert set(re.findall(r"`(\w+)`", text)) & files == files, f"{name} lacks a file"
