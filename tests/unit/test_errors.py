"""The hierarchy of errors is the one that its docstring draws."""

import inspect
import re
from typing import Any

import pytest

from anydepth import errors

KINDS: dict[str, Any] = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}


def drawn() -> dict[str, str]:
    """Each error of the drawing -> the one that it hangs under."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"^( {4}[ |]*(?:\+- )?)([A-Z]\w+)(?: {2,}|$)", line):
            indent, name = len(match[1]), match[2]
            while above and above[-1][0] >= indent:
                above.pop()
            parents[name] = above[-1][1] if above else "Exception"
            above.append((indent, name))
    return parents


def test_the_drawing_is_true_and_whole() -> None:
    parents = {name: next(base.__name__ for base in kind.__bases__) for name, kind in KINDS.items()}
    assert drawn() == parents
    assert len(parents) > 10


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ConfigError", ValueError),
        ("MissingExtra", ImportError),
        ("PromptError", ValueError),
        ("RecordError", ValueError),
    ],
)
def test_some_are_errors_of_python_too(name: str, builtin: type[Exception]) -> None:
    assert issubclass(KINDS[name], builtin)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_one_except_catches_all_and_every_error_says_what_it_is(name: str) -> None:
    assert issubclass(KINDS[name], errors.AnydepthError)
    assert KINDS[name].__doc__
    assert str(KINDS[name]("the thing, its value, the remedy")) == "the thing, its value, the remedy"
