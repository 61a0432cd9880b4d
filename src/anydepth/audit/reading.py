"""Read an audit trail: its files from the oldest to the newest, line by line."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, BinaryIO

from anydepth.audit.chain import Link, parse
from anydepth.audit.file import older_files
from anydepth.audit.trail import AuditError


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an audit trail.

    Attributes:
        file: The file it is in.
        number: Which of the file's lines it is; the first is 1.
        data: Its bytes without the newline.
        whole: Whether it has its newline; only a file's last line can lack it.
        record: What it says, or None if it is not a JSON object.
    """

    file: Path
    number: int
    data: bytes
    whole: bool
    record: dict[str, Any] | None


def read_lines(path: str | Path) -> Iterator[Line]:
    """All lines of an audit trail that are not blank, the oldest file first, whatever number it has.

    Raises:
        AuditError: There is no such trail, or one of its files cannot be read or is an SQLite database.
    """
    path = Path(path)
    with ExitStack() as stack:
        files = reversed(_open_all(path, stack))
        for file, opened in sorted(files, key=lambda each: _first_number(each[1])):
            for number, line in enumerate(opened, 1):
                if data := line.removesuffix(b"\n"):
                    yield Line(file, number, data, line.endswith(b"\n"), parse(data))


def read_records(path: str | Path) -> Iterator[dict[str, Any]]:
    """All records of an audit trail, the oldest first; other lines are left out; AuditError as of `read_lines`."""
    return (line.record for line in read_lines(path) if line.record is not None)


def _open_all(path: Path, stack: ExitStack) -> list[tuple[Path, BinaryIO]]:
    """The files of a trail, by their names the newest first.

    A server may move them up meanwhile: they are looked for until none is found that is not open yet.
    """
    files: dict[tuple[int, int], tuple[Path, BinaryIO]] = {}
    while True:
        known = len(files)
        for name in (path, *older_files(path)):
            if (opened := _open(name)) is not None:
                found = os.fstat(opened.fileno())
                if (found.st_dev, found.st_ino) in files:
                    opened.close()
                else:
                    files[found.st_dev, found.st_ino] = name, stack.enter_context(opened)
        if not files:
            if path.exists() or older_files(path):  # the only file was moved up after it had been looked for
                continue
            raise AuditError(f"there is no audit trail at {path}; give the path of [audit]")
        if len(files) == known:
            return list(files.values())


def _first_number(opened: BinaryIO) -> float:
    """Number of a file's first record, by which files are put in order.

    It is 0 in files of an older version, which had none and stay as their names say; a file whose first record is just
    being written is the newest.
    """
    line = opened.readline()
    opened.seek(0)
    return Link.of(line).number if line.endswith(b"\n") else inf


def _open(file: Path) -> BinaryIO | None:
    """An open file; None if there is none: it was the oldest one, or a server was killed before it began a new one."""
    try:
        opened = file.open("rb")
        if not opened.peek(16).startswith(b"SQLite format 3\0"):
            return opened
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AuditError(f"{file}: {error.strerror or error}; give a file that can be read") from error
    opened.close()
    raise AuditError(
        f"{file} is an SQLite database, which an earlier version wrote; write its records as JSON lines: "
        f"sqlite3 {file} 'SELECT record FROM records ORDER BY rowid' > audit.jsonl"
    )
