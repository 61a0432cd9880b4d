"""Number the records of an audit trail and tie each one to the line before it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Link:
    """The last record of a trail, as the next one refers to it.

    Attributes:
        number: Number of the record, the first one is 1; 0 for a trail that has no record, or none with a number.
        digest: SHA-256 of the record's line without its newline, in hexadecimal digits; empty for a trail without one.
    """

    number: int = 0
    digest: str = ""

    @classmethod
    def of(cls, line: bytes) -> "Link":
        """The link of a stored line, which is given without its newline."""
        number = (parse(line) or {}).get("seq", 0)
        return cls(number if isinstance(number, int) else 0, sha256(line).hexdigest())

    def line(self, record: Record) -> bytes:
        """The next record's line, newline included: `seq` is its number and `prev` the digest of the line before it.

        Raises:
            ValueError, TypeError: The record has a value that JSON has no way to write.
        """
        stamped = {**record, "seq": self.number + 1, "prev": self.digest}
        # A lone surrogate, which a client can send, has no UTF-8: written as \udXXX it is JSON's own escape for it.
        text = json.dumps(stamped, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8", "backslashreplace") + b"\n"


def parse(line: bytes) -> dict[str, Any] | None:
    """The record of a line, or None if the line is not a JSON object."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # broken JSON, or bytes that are not UTF-8
        return None
    return record if isinstance(record, dict) else None
