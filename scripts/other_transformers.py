"""Put another release of Transformers before the installed one: `python scripts/other_transformers.py 5.16.1 FOLDER`.

FOLDER gets that release, and those of its requirements that the environment has in a version that it does not take.
Python uses them with PYTHONPATH=FOLDER; the environment stays as it is. `make test-transformers` does so.
"""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def lacking(folder: Path) -> list[str]:
    """Requirements of the packages in `folder` that neither they nor the environment meet, as pip takes them."""
    own = {each.name.lower().replace("_", "-"): each for each in metadata.distributions(path=[str(folder)])}
    found = []
    for package in own.values():
        for requirement in map(Requirement, package.requires or ()):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            name = requirement.name.lower().replace("_", "-")
            version = own[name].version if name in own else _installed(name)
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                found.append(f"{requirement.name}{requirement.specifier}")
    return sorted(set(found))


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def main() -> int:
    """Fill the folder that the command line names."""
    if len(sys.argv) != 3:
        print(f"give a version of Transformers and a folder: {' '.join(sys.argv)}", file=sys.stderr)
        return 2
    version, folder = sys.argv[1], Path(sys.argv[2])
    wanted = [] if list(folder.glob(f"transformers-{version}.dist-info")) else [f"transformers=={version}"]
    for _ in range(3):  # what was lacking may itself lack something
        if wanted:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
            subprocess.run([*pip, *wanted], check=True)
        wanted = lacking(folder)
        if not wanted:
            return 0
    print(f"Transformers {version} still lacks {', '.join(wanted)}; install these by hand", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
