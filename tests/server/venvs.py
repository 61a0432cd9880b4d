"""Virtual environments that tests fetch once a machine."""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fetched import alone, cache_root


def python_with(name: str, requirements: Path) -> Path:
    """The interpreter of an environment that has what a requirements file names; it is made anew when that changes."""
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]
    name = f"{name}-{sys.version_info.major}.{sys.version_info.minor}-{digest}"
    root = cache_root()
    folder = root / name
    with alone(name):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=root) as scratch:
                _install(Path(scratch) / name, requirements)
                # in one step: a killed run leaves nothing half done; `python -m` and -c work after it, scripts do not
                (Path(scratch) / name).rename(folder)
    return folder / "bin" / "python"


def _install(folder: Path, requirements: Path) -> None:
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", requirements]
    for command in ([sys.executable, "-m", "venv", folder], install):
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
        if done.returncode != 0:
            last = "\n".join(done.stderr.strip().splitlines()[-5:])
            raise RuntimeError(f"{' '.join(map(str, command))} exited with {done.returncode}:\n{last}")
