"""Run case scripts in the environment of evaluation programs, and find the examples of their pages."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.server.venvs import python_with

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
_ENTRY_POINTS = r'^\[project\.entry-points\."?([\w.]+)"?\]\n((?:\w+ = .*\n)+)'


def examples(page: str, language: str = "python") -> list[str]:
    """The blocks of code in one language on a page of docs/integrations, in order."""
    text = (ROOT / "docs" / "integrations" / f"{page}.md").read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def outcomes(script: str, *arguments: object, folder: Path, requirements: str = "evaluators.txt") -> dict[str, Any]:
    """What each case of a script printed, by its name; the script runs in `folder`, with anydepth as if installed."""
    installed = folder / "installed"
    _entry_points(installed)
    paths = os.pathsep.join(map(str, (ROOT / "src", installed)))
    env = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    python = python_with(Path(requirements).stem, HERE / requirements)
    command = [str(each) for each in (python, HERE / script, *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    cases = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    return {each["case"]: each["outcome"] for each in cases}


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
