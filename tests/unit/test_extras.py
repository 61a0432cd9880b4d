"""Optional dependencies: there, or the line that installs them."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from anydepth.errors import AnydepthError, MissingExtra
from anydepth.extras import require


def test_what_is_installed_is_imported() -> None:
    assert require("json", extra="transformers") is json
    assert require("json.decoder", extra="transformers") is json.decoder


@pytest.mark.parametrize("module", ["anydepth_no_such_engine", "anydepth_no_such_engine.part"])
def test_what_is_missing_is_named_with_the_line_that_installs_it(module: str) -> None:
    with pytest.raises(
        MissingExtra, match=rf"^{module} is not installed; run: pip install 'anydepth\[engine\]'$"
    ) as info:
        require(module, extra="engine")
    assert isinstance(info.value, ImportError)
    assert isinstance(info.value, AnydepthError)


@pytest.mark.parametrize("missing", ["anydepth_no_such_part", "engine"])
def test_a_module_whose_own_import_fails_is_another_problem(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`engine` is missing where `engineful` wants it: the names begin alike, and it is still another module."""
    (tmp_path / "engineful.py").write_text(f"import {missing}\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError) as info:
        require("engineful", extra="engine")
    assert not isinstance(info.value, MissingExtra)
    assert info.value.name == missing


def _engine(version: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of that version; its name differs from version to version, since modules are imported once."""
    name = f"engine_{(version or 'none').replace('.', '_').replace('+', '_')}"
    (folder / f"{name}.py").write_text("" if version is None else f"__version__ = {version!r}\n", "utf-8")
    monkeypatch.syspath_prepend(folder)
    return name


@pytest.mark.parametrize("version", ["5.16.0", "5.16", "5.100.1", "6.0.0.dev0", "5.16.0+cpu"])
def test_what_is_new_enough_is_imported(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = require(_engine(version, tmp_path, monkeypatch), extra="engine", at_least=(5, 16))
    assert found.__version__ == version


@pytest.mark.parametrize("version", ["5.15.1", "5.9", "4.57.6", "0.5+cpu", None])
def test_what_is_too_old_is_named_with_the_line_that_renews_it(
    version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = _engine(version, tmp_path, monkeypatch)
    message = rf"^{name} is {re.escape(version or '0.0')}, and anydepth works with 5.16 and newer; run: pip install "
    with pytest.raises(MissingExtra, match=message):
        require(name, extra="engine", at_least=(5, 16))


def test_the_versions_that_are_refused_are_those_that_pip_would_not_install() -> None:
    root = Path(__file__).resolve().parents[2]
    wanted = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    code = (root / "src/anydepth/backends/transformers/__init__.py").read_text("utf-8")
    for name in ("torch", "transformers"):
        (line,) = [line for line in wanted["transformers"] if re.match(rf"{name}>=", line)]
        major, minor = line.removeprefix(f"{name}>=").split(".")
        assert f'require("{name}", extra="transformers", at_least=({major}, {minor}))' in code


def test_all_holds_every_extra_of_a_user_but_the_engine_that_pins_versions_of_its_own() -> None:
    root = Path(__file__).resolve().parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    (whole,) = extras["all"]
    named = set(re.fullmatch(r"anydepth\[(.+)\]", whole)[1].split(","))  # pyright: ignore[reportOptionalSubscript]
    programs = {"inspect", "langchain", "llm"}  # of one program each, beside which an integration works
    assert named == extras.keys() - {"all", "vllm", "test", "check", "docs"} - programs
