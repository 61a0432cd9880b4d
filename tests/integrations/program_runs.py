"""Run case scripts, and the examples of pages, in environments with the real packages of other programs."""

import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.server.venvs import python_with

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
_ENTRY_POINTS = r'^\[project\.entry-points\."?([\w.]+)"?\]\n((?:\w+ = .*\n)+)'


def run(
    arguments: Sequence[object], programs: str, *, stdin: str = "", folder: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the interpreter that has the programs of `programs`.txt, in `folder`, with anydepth on its path."""
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **env}
    command = [python_with(programs, HERE / f"{programs}.txt"), *map(str, arguments)]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, **quiet}, cwd=folder,
    )  # fmt: skip


def outcomes(script: str, programs: str, *arguments: object, folder: Path | None = None) -> dict[str, Any]:
    """What each case of a script printed, by its name: lines `{"case": NAME, "outcome": ...}`.

    With a `folder` it runs there, and anydepth is as if installed: other programs find its entry points.
    """
    env = {}
    if folder is not None:
        _entry_points(folder / "installed")
        env["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT / "src", folder / "installed")))
    done = run([HERE / script, *arguments], programs, folder=folder, **env)
    assert done.returncode == 0, done.stderr[-4000:]
    cases = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    return {each["case"]: each["outcome"] for each in cases}


def examples(page: str, language: str = "python") -> list[str]:
    """The blocks of code in one language on a page of docs/integrations, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", _text_of(page), re.MULTILINE | re.DOTALL)


def example(page: str, language: str = "python") -> tuple[str, str]:
    """The first block of code of a page, and the block of text after it: what it prints."""
    found = re.search(rf"```{language}\n(.*?)```.*?```text\n(.*?)```", _text_of(page), re.DOTALL)
    assert found is not None, f"{page} has no block of {language} with a block of text behind it"
    return found[1], found[2]


def _text_of(page: str) -> str:
    return (ROOT / "docs" / "integrations" / f"{page}.md").read_text("utf-8")


def _entry_points(folder: Path) -> None:
    """What an editable installation tells other programs of anydepth, from pyproject.toml."""
    about = folder / "anydepth-0.dist-info"
    about.mkdir(parents=True)
    groups = re.findall(_ENTRY_POINTS, (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    text = "\n".join(f"[{group}]\n{lines.replace(chr(34), '')}" for group, lines in groups)
    (about / "entry_points.txt").write_text(text, "utf-8")
    (about / "top_level.txt").write_text("anydepth\n", "utf-8")
    about_source = {"url": ROOT.as_uri(), "dir_info": {"editable": True}}
    (about / "direct_url.json").write_text(json.dumps(about_source), "utf-8")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: anydepth\nVersion: 0\n", "utf-8")
