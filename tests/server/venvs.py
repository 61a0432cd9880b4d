"""Virtual environments, and folders of npm packages, that tests fetch once per machine."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fetched import alone, cache_root


def python_with(name: str, requirements: Path) -> Path:
    """The interpreter of an environment that has what a requirements file names; it is made anew when that changes."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return _fetched(f"{name}-{version}", requirements, _install) / "bin" / "python"


def node_with(name: str, package: Path) -> Path:
    """A folder with the npm packages of a package.json; without Node, or npm's registry, the test is skipped."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed here")
    try:
        return _fetched(name, package, _install_npm)
    except RuntimeError as error:
        pytest.skip(f"npm could not install {package.name}: {error}")


def _fetched(name: str, wanted: Path, install: Callable[[Path, Path], None]) -> Path:
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()[:16]
    name = f"{name}-{digest}"
    root = cache_root()
    folder = root / name
    with alone(name):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=root) as scratch:
                install(Path(scratch) / name, wanted)
                # in one step: a killed run leaves nothing half done; `python -m` and -c work after it, scripts do not
                (Path(scratch) / name).rename(folder)
    return folder


def _install(folder: Path, requirements: Path) -> None:
    _run(sys.executable, "-m", "venv", folder)
    _run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", requirements)


def _install_npm(folder: Path, package: Path) -> None:
    folder.mkdir()
    shutil.copy(package, folder / "package.json")
    _run("npm", "install", "--no-audit", "--no-fund", "--prefix", folder)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise RuntimeError(f"{' '.join(map(str, command))} exited with {done.returncode}:\n{last}")
