"""What importing anydepth costs, and that the code keeps to its own rules."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "anydepth"
LONGEST = 350
LONGER_WITH_A_REASON: dict[str, str] = {}
"""Path below src/anydepth -> why the file may be longer."""


def test_import_anydepth_imports_no_model_library() -> None:
    code = (
        "import sys, anydepth\n"
        "heavy = {'torch', 'transformers', 'vllm', 'sklearn', 'joblib', 'typer', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_tests_that_are_begun_first_exist() -> None:
    from tests import conftest

    assert [name for name in conftest.LONGEST if not (ROOT / "tests" / name).is_file()] == []


def test_public_names_exist() -> None:
    import anydepth

    assert len(set(anydepth.__all__)) == len(anydepth.__all__) > 0
    assert [name for name in anydepth.__all__ if not hasattr(anydepth, name)] == []


def test_no_file_is_too_long() -> None:
    lengths = {
        str(path.relative_to(SOURCE)): len(path.read_text("utf-8").splitlines()) for path in SOURCE.rglob("*.py")
    }
    assert {path: n for path, n in lengths.items() if n > LONGEST and path not in LONGER_WITH_A_REASON} == {}
    assert [path for path in LONGER_WITH_A_REASON if lengths.get(path, 0) <= LONGEST] == [], "a reason is out of date"


def test_no_file_name_occurs_twice() -> None:
    """The name of a file says which it is; a command of the CLI has the name that users type."""
    names = Counter(
        path.name for path in SOURCE.rglob("*.py") if path.parent.name != "cli" and path.name != "__init__.py"
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_no_public_class_name_occurs_twice() -> None:
    """A class is found by its name alone, whatever file it is in."""
    names = Counter(
        node.name
        for path in SOURCE.rglob("*.py")
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []
