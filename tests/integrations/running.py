"""Run a case script, or the example of a page, with the real package of a program."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.server.venvs import python_with

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
APPS = HERE / "apps.txt"


def run(arguments: list[Any], *, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """The interpreter that has the programs of `apps.txt`, with anydepth on its path."""
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(
        [python_with("apps", APPS), *arguments],
        input=stdin, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, **quiet},
    )  # fmt: skip


def outcomes(script: str) -> dict[str, Any]:
    """What became of each case of a script, which prints `{"case": NAME, "outcome": ...}` for each."""
    done = run([HERE / script])
    assert done.returncode == 0, done.stderr
    cases = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    return {each["case"]: each["outcome"] for each in cases}


def example(page: str, language: str = "python") -> tuple[str, str]:
    """The first block of code of a page in docs/integrations, and the block of text after it: what it prints."""
    text = (ROOT / "docs" / "integrations" / page).read_text("utf-8")
    found = re.search(rf"```{language}\n(.*?)```.*?```text\n(.*?)```", text, re.DOTALL)
    assert found is not None, f"{page} has no block of {language} with a block of text behind it"
    return found[1], found[2]
