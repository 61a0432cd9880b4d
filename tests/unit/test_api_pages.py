"""The API reference: every public name is on a page of docs/api, with an example that runs."""

import ast
import doctest
import importlib
import inspect
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from tests.evaluations import write_tables
from tests.server import tiny_model

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "anydepth"
PAGES = sorted(path for path in (ROOT / "docs" / "api").glob("*.md") if path.name != "index.md")
TABLES = (
    "pairs_deep_validation",
    "pairs_benign_validation",
    "responses_xstest",
    "attacks_validation",
    "probe_validation",
)
_DIRECTIVE = re.compile(r"^::: (\S+)$", re.MULTILINE)
_BLOCK = re.compile(r"^```pycon\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _rooms() -> dict[str, list[str]]:
    """Each module of the package that has an `__all__`, and what it lists."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                parts = path.relative_to(SOURCE.parent).with_suffix("").parts
                found[".".join(parts).removesuffix(".__init__")] = ast.literal_eval(node.value)
    return found


ROOMS = _rooms()
PUBLIC = [f"{room}.{name}" for room, names in ROOMS.items() for name in names]


def _get(dotted: str) -> object:
    room, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(room), name)


def _home(dotted: str) -> tuple[str, str]:
    """Where a public thing is defined: the same for each room that lists it."""
    thing, (room, _, name) = _get(dotted), dotted.rpartition(".")
    return getattr(thing, "__module__", room), getattr(thing, "__qualname__", name)


def _listed(page: Path) -> list[str]:
    """The names of a page's reference, rooms themselves left out."""
    return [name for name in _DIRECTIVE.findall(page.read_text("utf-8")) if name not in ROOMS]


def _examples(page: Path) -> str:
    """The page with everything but its examples left blank: lines keep their numbers."""
    text = page.read_text("utf-8")
    lines = ["\n"] * (text.count("\n") + 1)
    for block in _BLOCK.finditer(text):
        first = text.count("\n", 0, block.start(1))
        for number, line in enumerate(block[1].splitlines(keepends=True)):
            lines[first + number] = line
    return "".join(lines)


def _shown(page: Path) -> str:
    """The code of a page's examples and what it prints, imports left out."""
    examples = doctest.DocTestParser().get_examples(_examples(page))
    used = [each for each in examples if not each.source.startswith(("from ", "import "))]
    return "".join(f"{each.source}{each.want}" for each in used)


def test_every_room_lists_its_names_once_and_has_them() -> None:
    for room, names in ROOMS.items():
        assert len(names) == len(set(names)), room
        assert [name for name in names if not hasattr(importlib.import_module(room), name)] == [], room


def test_the_pages_list_what_the_rooms_list() -> None:
    listed = [name for page in PAGES for name in _listed(page)]
    homes = [_home(name) for name in listed]
    assert sorted(homes) == sorted(set(homes)), "a name is on two pages"
    assert [name for name in listed if name not in PUBLIC] == [], "on a page, and no room lists it"
    assert [name for name in PUBLIC if _home(name) not in homes] == [], "public, and on no page"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_name_of_a_page_has_an_example(page: Path) -> None:
    shown = _shown(page)
    names = [each.rpartition(".")[2] for each in _listed(page)]
    assert [name for name in names if not re.search(rf"\b{name}\b", shown)] == []


@pytest.mark.parametrize("name", PUBLIC)
def test_a_docstring_says_what_it_is_and_what_it_raises(name: str) -> None:
    thing = _get(name)
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return  # a constant: mkdocs refuses one without the text below it
    assert thing.__doc__
    assert not thing.__doc__.startswith(f"{name.rpartition('.')[2]}("), "the docstring that dataclass makes up"
    for each in _callables(thing):
        said = inspect.getdoc(each) or ""
        missing = [error for error in _raised(each) if not re.search(rf"\b{error}\b", said)]
        assert missing == [], f"{each.__qualname__} raises what its docstring does not name"


def _callables(thing: object) -> Iterator[Callable[..., object]]:
    """A function itself; of a class, the public functions and properties that it defines."""
    if inspect.isfunction(thing):
        yield thing
    for name, member in vars(thing).items() if inspect.isclass(thing) else ():
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if not name.startswith("_") and inspect.isfunction(function):
            yield function


def _raised(function: Callable[..., object]) -> set[str]:
    """The names of the errors that a public name may have and that the body of `function` raises itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    names = {ast.unparse(each.func) for each in raised}
    return names & {name.rpartition(".")[2] for name in PUBLIC}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What docs/api/index.md says that the examples find: a model, a probe, and tables of harmless words."""
    folder = tmp_path_factory.mktemp("examples")
    tiny_model.build(folder / "org" / "model")
    write_tables(folder / "data", names=TABLES)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_run(page: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(workplace, tmp_path, dirs_exist_ok=True)
    shutil.copy(tmp_path / "org" / "model" / "probe.safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(_examples(page), {}, page.name, str(page), 0)
    assert test.examples
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    printed: list[str] = []
    with mock.patch.dict(os.environ):  # engine_options sets what vLLM needs
        runner.run(test, out=printed.append)
    assert runner.failures == 0, "".join(printed)
