"""Let one process at a time write to a place."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from anydepth.errors import ConfigError


def lock(path: Path, part: str = "") -> FileLock:
    """Take the lock of a file or folder, in whatever way its path is written; `release` gives it back.

    The lock is the operating system's, on the empty file `.NAME.lock` beside `path`: a process that dies gives it back.

    Args:
        path: What is to be written.
        part: Which part of it, where several processes may write parts of their own.

    Raises:
        ConfigError: Another process has it, or the lock's file cannot be made.
    """
    try:
        place = path.resolve()
    except (OSError, RuntimeError) as error:  # until Python 3.13 links that lead to each other are a RuntimeError
        raise ConfigError(f"cannot write {path}: its links lead nowhere ({error}); give another place") from error
    if not place.name:
        raise ConfigError(f"{path} is the root of the file system; give another place")
    file = place.with_name(f".{place.name}{part and f'.{part}'}.lock")
    held = FileLock(file)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0)
    except Timeout:
        if not file.exists():
            raise ConfigError(f"cannot write {path}: {file} cannot be made; give another place") from None
        raise ConfigError(
            f"another process is writing to {path}; wait until it has ended, or give another place"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}; give another place") from error
    return held


@contextmanager
def hold(path: Path, part: str = "") -> Iterator[None]:
    """Have the lock of `path` meanwhile; see `lock`."""
    held = lock(path, part)
    try:
        yield
    finally:
        held.release()
