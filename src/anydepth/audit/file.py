"""Write records into a file of JSON lines that stays whole, stays the server's own, and is rotated by size."""

import errno
import logging
import os
import re
import stat
import time
from collections import deque
from glob import escape
from io import FileIO
from pathlib import Path
from typing import Any

from anydepth.audit.chain import Link, Record
from anydepth.audit.tail import Tail, mend

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

logger = logging.getLogger(__name__)

ROOM = 65_536
"""Bytes that must be free before an audit trail counts as repaired."""
VERSION = 1

_NUMBER = re.compile(r"[1-9][0-9]{0,5}")
"""The ending of a rotated file; that of a date (`audit.jsonl.20261128`) is somebody else's."""
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)


class FileInUse(OSError):
    """Another process writes the file, or another trail of this process does."""


class JsonlFile:
    """JSON lines; at `max_bytes` the file becomes `path.1`, `path.1` becomes `path.2`, up to `keep`.

    The file is locked as long as it is open; the lock ends with the process, however that ends. Before each record the
    file is compared with what `path` names: if it was moved, deleted or replaced, a new file is begun there, and if it
    has another length than it was left with, it is mended first. A `file` record says so; the chain of the records
    (`chain.Link`) goes on.

    Args:
        path: The file. Folders above it are made; a new file can be read and written by its owner only.
        max_bytes: Size at which it is rotated.
        keep: Rotated files that are kept.
        sync: Whether each record is on the disk itself before `write` returns, so that it outlives the machine's power.

    Raises:
        FileInUse: Another process writes the file.
        OSError: It cannot be opened, locked, mended or written, or is no file of JSON lines.
    """

    def __init__(self, path: Path, max_bytes: int, keep: int, *, sync: bool = False) -> None:
        self._path, self._max_bytes, self._keep, self._sync = path, max_bytes, keep, sync
        self._notes: deque[dict[str, Any]] = deque()
        self._overdue = self._doubtful = False
        self._file, self._size = self._open(), 0
        try:
            self._adopt("start")
            self._link = _last_link(self._file.fileno(), path)
            self._write_notes()
        except OSError:
            self._file.close()
            raise

    def write(self, record: Record) -> None:
        """Append one line, whole or not at all; OSError if it is not stored, ValueError if JSON cannot have it."""
        self._follow()
        line = self._link.line(record)
        if self._overdue or (self._size and self._size + len(line) > self._max_bytes):
            self._rotate()
        if self._notes:
            self._write_notes()
            line = self._link.line(record)
        self._append(line)

    def probe(self) -> None:
        """Try what `write` needs: write some room and give it back; raises as `write` does."""
        self._follow()
        if self._overdue:
            self._rotate()
        self._write_notes()
        self._try(b"\n" * ROOM)
        os.ftruncate(self._file.fileno(), self._size)

    def close(self) -> None:
        """Let go of the file and its lock; afterwards `write` raises ValueError."""
        self._file.close()

    def _open(self) -> FileIO:
        """The file that `path` names, locked; made if there is none."""
        if fcntl is None:
            raise OSError("this system has no locks for files (flock), without which two servers could write one trail")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.is_symlink():
            raise OSError(f"it is a symbolic link to {str(self._path.readlink())!r}; give that path itself")
        while True:
            file = FileIO(os.open(self._path, _FLAGS, 0o600), "r+")
            try:
                _check(file.fileno())
                _lock(file.fileno())
                if _same(os.fstat(file.fileno()), _named(self._path)):
                    return file
            except BaseException:
                file.close()
                raise
            file.close()  # whoever had the lock until now has moved the file meanwhile

    def _adopt(self, reason: str) -> None:
        """Take the open file as the trail's, `reason` being why: mend it, and note both."""
        file = self._file.fileno()
        torn = mend(file)
        for note in torn:
            logger.warning("the audit trail had half a record", extra={"path": str(self._path), "bytes": note["bytes"]})
        self._size, self._doubtful = os.fstat(file).st_size, False
        head = {"kind": "file", "version": VERSION, "time": time.time(), "reason": reason}
        self._notes.extend([*torn, head])
        if self._sync:
            _sync_folder(self._path.parent)

    def _follow(self) -> None:
        """See to it that the open file is the one that `path` names, and is as it was left."""
        held, named = os.fstat(self._file.fileno()), _named(self._path)
        if not _same(held, named):
            reason = "missing" if named is None else "replaced"
            logger.error("the audit file was moved or deleted", extra={"path": str(self._path), "reason": reason})
            self._begin(reason)
        elif held.st_size != self._size or self._doubtful:
            sizes = {"path": str(self._path), "bytes": held.st_size, "expected": self._size}
            logger.error("the audit file was changed by somebody else, or half a record is left in it", extra=sizes)
            self._adopt("changed")

    def _begin(self, reason: str) -> None:
        """Go on in the file that `path` names now."""
        file = self._open()
        self._file.close()
        self._file, self._doubtful = file, True
        self._adopt(reason)

    def _rotate(self) -> None:
        """Begin a new file. Files that are there are moved up as far as the first free number, and no farther."""
        self._overdue = True  # until it is done: a probe has to try it, too
        if self._sync:
            os.fsync(self._file.fileno())
        free = next((n for n in range(1, self._keep) if not rotated(self._path, n).exists()), self._keep)
        for number in range(free - 1, 0, -1):
            rotated(self._path, number).replace(rotated(self._path, number + 1))
        self._path.replace(rotated(self._path, 1))
        self._overdue = False
        self._begin("rotated")
        number = self._keep + 1
        while (older := rotated(self._path, number)).is_file():  # `keep` has become smaller
            older.unlink()
            number += 1

    def _write_notes(self) -> None:
        while self._notes:
            self._append(self._link.line(self._notes[0]))
            self._notes.popleft()

    def _append(self, line: bytes) -> None:
        self._try(line)
        self._size += len(line)
        self._link = Link.of(line.removesuffix(b"\n"))

    def _try(self, data: bytes) -> None:
        """Write bytes; if they are not all stored, take out those that are."""
        file = self._file.fileno()
        try:
            written = os.write(file, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes were written")
            if self._sync:
                os.fsync(file)
        except OSError:
            self._doubtful = True  # until the file is known to be whole
            os.ftruncate(file, self._size)
            self._doubtful = False
            raise


def rotated(path: Path, number: int) -> Path:
    """The name of an older file."""
    return path.with_name(f"{path.name}.{number}")


def older_files(path: Path) -> list[Path]:
    """The rotated files that there are, the newest first."""
    endings = [each.name.removeprefix(f"{path.name}.") for each in path.parent.glob(f"{escape(path.name)}.*")]
    return [rotated(path, number) for number in sorted(int(each) for each in endings if _NUMBER.fullmatch(each))]


def _last_link(file: int, path: Path) -> Link:
    """Where the trail stands: at the end of the file, or of the newest rotated one if the file is still empty.

    FileInUse if another server has that one: it was about to begin a new file itself.
    """
    tail = Tail.of(file)
    if not tail.line and (older := older_files(path)):  # a process was killed between moving one and beginning the next
        with older[0].open("r+b") as opened:
            _lock(opened.fileno())
            tail = Tail.of(opened.fileno())
    return Link.of(tail.line) if tail.line else Link()


def _check(file: int) -> None:
    """Refuse what cannot be an audit trail, before anything in it is mended."""
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is not a regular file")
    if os.pread(file, 1, 0) not in (b"", b"{", b"\n"):
        raise OSError("the file is there and is not JSON lines")
    if found.st_mode & 0o077:
        logger.warning("the audit file is open to others", extra={"mode": f"{stat.S_IMODE(found.st_mode):04o}"})


def _lock(file: int) -> None:
    """Lock the file itself: a lock beside it would not outlive `rm audit*`, nor be that of another name of the file."""
    assert fcntl is not None  # `_open` has seen to it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileInUse(errno.EWOULDBLOCK, "another server writes it") from None


def _sync_folder(folder: Path) -> None:
    """Let the names in a folder outlive the machine's power, too."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _named(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _same(held: os.stat_result, named: os.stat_result | None) -> bool:
    return named is not None and os.path.samestat(held, named)
