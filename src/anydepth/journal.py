"""Append records to a file that a killed run may have left half written."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from anydepth.errors import ConfigError
from anydepth.files import read_json, write_whole, writing


class Journal:
    """A JSONL file of records, and beside it what made them and which were left out.

    `answers.jsonl` has the records, `answers.jsonl.left-out` the ids and reasons of those that are not in it, and
    `answers.jsonl.run.json` the settings: going on with others is refused.

    Args:
        path: The file; a last line without its end is cut off.
        settings: What the records depend on, JSON-ready.

    Attributes:
        rows: The records by id, without their text.
        left_out: Reasons by id.

    Raises:
        ConfigError: The file cannot be written, is not such a file or was begun with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        if path.suffix != ".jsonl":
            raise ConfigError(f"{path} must be called .jsonl, so that it can be loaded again")
        self.path, beside = path, path.with_name(f"{path.name}.left-out")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_settings(path, beside, settings)
            self.rows = {row["id"]: _facts(row) for row in _whole_lines(path)}
            self.left_out = {row["id"]: str(row.get("reason")) for row in _whole_lines(beside)}
            self._file, self._beside = path.open("ab"), beside.open("ab")

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._file, self._beside):
            with suppress(OSError):  # a write that failed has been told; what was written is with the system already
                file.close()

    def __contains__(self, key: object) -> bool:
        return key in self.rows or key in self.left_out

    def write(self, key: str, row: Mapping[str, Any]) -> None:
        """Append one record and hand it to the operating system; ConfigError if it does not take it."""
        self._append(self._file, row)
        self.rows[key] = _facts(row)

    def leave_out(self, key: str, reason: str) -> None:
        """Note why a record is not in the file; ConfigError if that cannot be written."""
        self._append(self._beside, {"id": key, "reason": reason})
        self.left_out[key] = reason

    def _append(self, file: IO[bytes], row: Mapping[str, Any]) -> None:
        with writing(self.path):
            file.write(_line(row))
            file.flush()


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, allow_nan=False) + "\n").encode("ascii")


def _facts(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("messages", "response")}


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The records of the file; what follows its last line break is cut off."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    try:
        rows = [json.loads(line) for line in content[:whole].splitlines()]
        if not all(isinstance(row, dict) and isinstance(row.get("id"), str) for row in rows):
            raise ValueError("a line is no record with an id")
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{path} was not written by an earlier run ({error}); give another file") from error
    if whole < len(content):
        os.truncate(path, whole)
    return rows


def _check_settings(path: Path, left_out: Path, settings: Mapping[str, Any]) -> None:
    beside = path.with_name(f"{path.name}.run.json")
    now = json.loads(json.dumps(settings, default=str))
    if any(file.exists() and file.stat().st_size for file in (path, left_out)):
        if not beside.exists():
            raise ConfigError(f"{path} was not written by an earlier run; give another file")
        before = read_json(beside, "the settings of an earlier run")
        for name, value in now.items():
            if before.get(name) != value:
                raise ConfigError(
                    f"{path} was begun with {name} {before.get(name)!r}, now it is {value!r}; give another file"
                )
        return
    write_whole(beside, json.dumps(now, indent=2) + "\n")
