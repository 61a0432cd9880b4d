"""Optional dependencies: there, or the line that installs them."""

import json
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
