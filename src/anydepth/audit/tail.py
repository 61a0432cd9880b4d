"""Mend the end of an audit file: a process that was killed may have left half a line there."""

import os
import time
from dataclasses import dataclass
from typing import Any

from anydepth.audit.chain import parse

_BLOCK = 65_536


@dataclass(frozen=True, slots=True)
class Tail:
    """The last line of a file that is not blank.

    Attributes:
        start: Place of its first byte in the file.
        line: Its bytes without the newline; empty if the file has blank lines only, or nothing.
        rest: Bytes that follow it: 0 for a line that was cut, 1 for a whole one, more if blank lines follow.
    """

    start: int
    line: bytes
    rest: int

    @classmethod
    def of(cls, file: int) -> "Tail":
        """The tail of an open file, which is a descriptor that can be read."""
        size = start = os.fstat(file).st_size
        data = b""
        while start > 0 and b"\n" not in data.rstrip(b"\n"):
            step = min(_BLOCK, start)
            start -= step
            data = os.pread(file, step, start) + data
        text = data.rstrip(b"\n")
        cut = text.rfind(b"\n") + 1
        return cls(start + cut, text[cut:], size - start - len(text))


def mend(file: int) -> list[dict[str, Any]]:
    """Bring a file to the end of its last whole record; `file` is a descriptor that can be read and appends.

    Blank lines at the end (room that was tried and not given back) are cut off. A record that lacks its newline only
    gets it. Half a record is taken out; what there was of it is in the `torn` records that are returned, which belong
    behind the last whole record.

    Raises:
        OSError: The file cannot be mended.
    """
    torn: list[dict[str, Any]] = []
    tail = Tail.of(file)
    if tail.line and not tail.rest:
        if parse(tail.line) is not None:
            if os.write(file, b"\n") != 1:
                raise OSError("the last line's end could not be written")
        else:
            partial = tail.line.decode(errors="replace")
            torn.append({"kind": "torn", "time": time.time(), "bytes": len(tail.line), "partial": partial})
            os.ftruncate(file, tail.start)
        tail = Tail.of(file)
    end = tail.start + len(tail.line) + min(tail.rest, 1) if tail.line else 0
    if os.fstat(file).st_size != end:
        os.ftruncate(file, end)
    return torn
