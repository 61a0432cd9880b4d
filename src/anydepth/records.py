"""Read and write the JSONL files of finished answers.

A record in is `{"id", "prompt" or "messages", "response"}`, a record out `{"id", "checks", "verdict"}`. A name that
ends in `.gz` is gzip. The output is appended to, one line a record: an interrupted run can go on where it stopped.
"""

import gzip
import json
import math
import os
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from anydepth.errors import ConfigError, RecordError
from anydepth.types import ScanResult

RecordId = str | int
_BEGINNING = b'{"id": '


@dataclass(frozen=True, slots=True)
class Record:
    """One finished answer to scan."""

    id: RecordId
    messages: list[dict[str, Any]]
    response: str


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input: a record, or what is wrong with it."""

    number: int
    record: Record | None
    error: str | None = None


def read_messages(text: str, name: str) -> list[dict[str, Any]]:
    """Read a conversation from JSON text; ConfigError says what `name` holds instead."""
    try:
        return check_messages(json.loads(text))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name} is not JSON: {error}") from error
    except RecordError as error:
        raise ConfigError(f"{name}: {error}") from error


def check_messages(value: Any) -> list[dict[str, Any]]:
    """Return `value` if it is a conversation; RecordError says what is wrong with it."""
    if not isinstance(value, list) or not value:
        raise RecordError('messages are not a list with at least one {"role": ..., "content": ...}')
    for position, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise RecordError(f'message {position} is not an object with "role" and "content"')
    return value


def parse_record(text: str) -> Record:
    """Read one record; RecordError says what is wrong with it."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RecordError(f"not JSON: {error.msg} at column {error.colno}") from error
    except (RecursionError, ValueError) as error:
        raise RecordError(f"not usable JSON: {error}") from error
    if "\\u" in text and not _encodable(value):
        raise RecordError("holds half a surrogate pair, which is no text")
    if not isinstance(value, dict):
        raise RecordError(f"a {type(value).__name__}, not an object")
    key = value.get("id")
    if not isinstance(key, str | int) or isinstance(key, bool):
        raise RecordError('"id" is missing or neither text nor a whole number')
    response = value.get("response")
    if not isinstance(response, str):
        raise RecordError('"response" is missing or not text')
    if ("prompt" in value) == ("messages" in value):
        raise RecordError('needs either "prompt" or "messages"')
    if "messages" in value:
        return Record(key, check_messages(value["messages"]), response)
    if not isinstance(value["prompt"], str):
        raise RecordError('"prompt" is not text')
    return Record(key, [{"role": "user", "content": value["prompt"]}], response)


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_lines(path: Path) -> Iterator[Line]:
    """Read a file line by line; a bad line or a repeated id is reported in its place, blank lines are passed over."""
    seen: dict[RecordId, int] = {}
    for number, raw in _raw_lines(path):
        try:
            record = parse_record(raw.decode("utf-8"))
            if record.id in seen:
                raise RecordError(f"id {record.id!r} was used on line {seen[record.id]} already")
            seen[record.id] = number
        except UnicodeDecodeError as error:
            yield Line(number, None, f"not UTF-8 text: {error.reason} at byte {error.start}")
        except RecordError as error:
            yield Line(number, None, str(error))
        else:
            yield Line(number, record)


def count_lines(path: Path) -> int:
    """Count the lines that `read_lines` will yield."""
    return sum(1 for _ in _raw_lines(path))


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with _open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError(f"{path} is not a whole gzip file: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error


def _open(path: Path, mode: str) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, mode)  # pyright: ignore[reportReturnType]
    return path.open(mode)


def scan_record(key: RecordId, result: ScanResult) -> dict[str, Any]:
    """Return the record out; a score that is not a number becomes null, with the reason beside it."""
    checks = []
    for check in result.checks:
        record: dict[str, Any] = {"depth": check.depth, "score": _number(check.score)}
        if record["score"] is None or check.error is not None:
            record["error"] = check.error or "the score is not a number"
        checks.append(record)
    verdict = result.verdict
    return {
        "id": key,
        "checks": checks,
        "verdict": {"halt": verdict.halt, "depth": verdict.depth, "score": _number(verdict.score)},
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


class RecordWriter:
    """Append records to a file that may hold some already.

    Opening it repairs a last line that a killed run left half written, and learns which ids are `done`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[RecordId] = set()
        try:
            if path.exists():
                self._resume()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open(path, "ab")
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, record: dict[str, Any]) -> None:
        """Append one record and hand it to the operating system."""
        line = json.dumps(record, allow_nan=False) + "\n"
        self._file.write(line.encode("ascii"))
        self._file.flush()
        self.done.add(record["id"])

    def _resume(self) -> None:
        """Learn the ids that are there; cut off what a killed run left after the last whole line."""
        whole, torn = 0, False
        try:
            with _open(self.path, "rb") as file:
                for number, raw in enumerate(file, start=1):
                    torn = not raw.endswith(b"\n")
                    key = None if torn else _written_id(raw)
                    if key is None and not (torn and _half_written(raw)):
                        raise ConfigError(
                            f"{self.path} line {number} is not a record of an earlier scan; give another file with -o"
                        )
                    if key is not None:
                        self.done.add(key)
                        whole += len(raw)
        except (EOFError, zlib.error):  # a gzip stream without its end
            torn = True
        except gzip.BadGzipFile as error:
            if (
                not self.done and self.path.stat().st_size > 1
            ):  # else its second, or only, stream broke off in its header
                raise ConfigError(f"{self.path} is not a gzip file ({error}); give another file with -o") from error
            torn = True
        if torn and self.path.suffix == ".gz":
            self._rewrite(whole)
        elif torn:
            os.truncate(self.path, whole)

    def _rewrite(self, size: int) -> None:
        """Replace the file by its first `size` uncompressed bytes."""
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name, suffix=self.path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            with _open(self.path, "rb") as old, _open(temporary, "wb") as new:
                while size > 0 and (piece := old.read1(min(size, 1 << 16))):  # pyright: ignore[reportAttributeAccessIssue]
                    new.write(piece)
                    size -= len(piece)
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)


def _half_written(raw: bytes) -> bool:
    """Say whether `raw` can be the beginning of a record that `RecordWriter` wrote."""
    return raw[: len(_BEGINNING)] == _BEGINNING[: len(raw)]


def _written_id(raw: bytes) -> RecordId | None:
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(value, dict) or not {"id", "checks", "verdict"} <= value.keys():
        return None
    key = value["id"]
    return key if isinstance(key, str | int) else None
