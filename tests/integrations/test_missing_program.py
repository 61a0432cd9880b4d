"""Without the program that it belongs to, a module says what to install."""

import importlib
import sys

import pytest

from anydepth.errors import MissingExtra

PROGRAMS = [
    ("inspect_model", "inspect_ai", "inspect"),
    ("inspect_tasks", "inspect_ai", "inspect"),
    ("lm_eval", "lm_eval", "eval"),
    ("langchain_chat", "langchain_core", "langchain"),
    ("llm_plugin", "llm", "llm"),
]


@pytest.mark.parametrize(("module", "package", "extra"), PROGRAMS)
def test_a_missing_program_is_named_with_the_line_that_installs_it(monkeypatch, module, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"anydepth.integrations.{module}", raising=False)
    message = rf"^{package} is not installed; run: pip install 'anydepth\[{extra}\]'$"
    with pytest.raises(MissingExtra, match=message):
        importlib.import_module(f"anydepth.integrations.{module}")
