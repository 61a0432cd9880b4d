"""Write a file whole or not at all."""

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_whole(path: str | Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, then rename that: a reader sees the old file or the new one.

    A symbolic link is followed, so that it stays a link and the file that it leads to is replaced. That file keeps its
    mode and, where this user may give it away, its owner. Folders that are missing are made. A device or a pipe, which
    has no content to replace, is written to.

    Raises:
        OSError: The file is read-only (also to root, whom a mode does not stop), `path` is a folder, or the system
            refuses to write; nothing has changed then.
    """
    target = Path(os.path.realpath(path))
    there = check_writable(target)
    if there is not None and not stat.S_ISREG(there.st_mode):
        target.write_bytes(content)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary, temporary.open("xb") as file:
        if there is not None:
            with suppress(PermissionError):
                os.chown(file.fileno(), there.st_uid, there.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(there.st_mode))  # after chown, which drops bits of it
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside `target` for a file that the block writes and syncs; at the end it replaces `target`."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(target)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def check_writable(path: str | Path) -> os.stat_result | None:
    """What is at `path`, links followed, None if nothing; OSError if it is a folder or a read-only file."""
    try:
        there = Path(path).stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(there.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder; give the path of a file", str(path))
    if not there.st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) or not os.access(path, os.W_OK):
        said = "the file is read-only; make it writable, or give another path"
        raise PermissionError(errno.EACCES, said, str(path))
    return there
