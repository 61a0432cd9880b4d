"""What `import anydepth` offers, and what it must not cost."""

import subprocess
import sys

import pytest

import anydepth
from anydepth import errors

HEAVY = ("torch", "transformers", "vllm", "sklearn", "joblib", "typer", "rich")


def test_the_public_list_is_sorted_and_without_doubles() -> None:
    assert anydepth.__all__ == sorted(set(anydepth.__all__))


@pytest.mark.parametrize("name", anydepth.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    thing = getattr(anydepth, name)
    assert thing.__name__ == name
    assert thing.__module__.startswith("anydepth.")
    assert thing.__doc__
    assert not thing.__doc__.startswith(f"{name}("), "the docstring that dataclass makes up"


def test_a_star_import_gives_the_public_list() -> None:
    namespace: dict[str, object] = {}
    exec("from anydepth import *", namespace)
    assert {name for name in namespace if not name.startswith("__")} == set(anydepth.__all__)


def test_nothing_public_is_left_out_of_the_list() -> None:
    public = {name for name, thing in vars(anydepth).items() if isinstance(thing, type)}
    assert public == set(anydepth.__all__)


def test_the_base_error_is_public() -> None:
    assert anydepth.AnydepthError is errors.AnydepthError


@pytest.mark.parametrize("module", ["anydepth", "anydepth.guard", "anydepth.scan", "anydepth.testing"])
def test_importing_it_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_a_guard_works_without_anything_heavy() -> None:
    """The docstring of `anydepth.testing` is true, in a process that cannot import torch."""
    code = (
        "import sys, doctest\n"
        f"sys.modules.update(dict.fromkeys({HEAVY}))\n"  # None there makes an import fail
        "from anydepth import testing\n"
        "failed, tried = doctest.testmod(testing)\n"
        "sys.exit(failed or not tried)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
