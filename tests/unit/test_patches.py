"""What is replaced in other people's libraries is listed, checked against the installed version, and documented."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from anydepth import patches
from anydepth.errors import ConfigError
from anydepth.patches import PATCHES, Patch

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "anydepth"
LISTED = {name: value for name, value in vars(patches).items() if isinstance(value, Patch)}


def test_all_patches_are_listed_used_and_documented():
    assert set(map(id, LISTED.values())) == set(map(id, PATCHES))
    page = (ROOT / "docs" / "vllm.md").read_text("utf-8")
    code = {path: path.read_text("utf-8") for path in SOURCE.rglob("*.py") if path.name != "patches.py"}
    for name, patch in LISTED.items():
        users = [path for path, text in code.items() if f"{name}.replace(" in text]
        assert users, f"{name} is used nowhere"
        assert all(f"{name}.check()" in code[path] for path in users), f"{name} is replaced unchecked"
        for member in patch.members:
            assert f"`{member}`" in page, f"{member} is not in docs/vllm.md"
        assert f"| {patch.tested} |" in page


COPIES = {SOURCE / "backends" / "transformers" / "ride.py"}
"""Files that give a copy of a model, made for one call of `generate`, a forward pass of its own; no model changes."""


def test_nothing_else_replaces_the_code_of_a_library():
    """Neither the class or the forward pass of an object, nor an attribute of an imported module, by assignment."""
    found = [
        f"{path.relative_to(SOURCE)}:{line}"
        for path in set(SOURCE.rglob("*.py")) - COPIES
        for line in _replacements(ast.parse(path.read_text("utf-8")))
    ]
    assert found == []


def test_replacements_are_found():
    code = "import torch as t\nfrom x.y import Z\nt.load = 1\nZ.f = 2\na.__class__ = 3\na.b = 4\nsetattr(t, 'f', 5)\n"
    assert list(_replacements(ast.parse(code))) == [3, 4, 5, 7]


def _replacements(tree):
    modules = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        or (isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("anydepth"))
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            owner = node.value.id if isinstance(node.value, ast.Name) else None
            if node.attr in ("__class__", "forward") or owner in modules:
                yield node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
            owner = node.args[0].id if isinstance(node.args[0], ast.Name) else None
            if owner in modules:
                yield node.lineno


def test_a_library_that_is_not_as_tested_is_refused_by_name():
    linear = Patch("a layer", "no reason", "torch.nn", {}, "2.13.0", "transformers")
    for members, complaint in (
        ({"Linear.forward": "self rows"}, r"torch\.nn\.Linear\.forward takes self, input"),
        ({"Linear.backward": "self"}, r"torch\.nn has no Linear\.backward"),
    ):
        with pytest.raises(ConfigError, match=complaint) as caught:
            replace(linear, members=members).check()
        assert f"pip install 'torch=={linear.tested}'" in str(caught.value)
