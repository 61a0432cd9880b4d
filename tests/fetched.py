"""The folder of what tests fetch once per machine, and the lock under which one process at a time fetches."""

import os
from pathlib import Path

import platformdirs
from filelock import FileLock


def cache_root() -> Path:
    """Return the folder that holds what tests fetch."""
    return Path(os.environ.get("ANYDEPTH_TEST_CACHE") or platformdirs.user_cache_path("anydepth") / "tests")


def alone(name: str) -> FileLock:
    """Return the lock on the fetching of `name`, for `with`: a second worker waits, and then finds what it wants."""
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    return FileLock(root / f".{name}.lock")
