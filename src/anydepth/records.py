"""Read finished answers from JSONL files, and write what was found of them.

A record in is `{"id", "prompt" or "messages", "response"}`, a record out `{"id", "checks", "verdict", "text_digest",
"settings_digest"}`. A name that ends in `.gz` is gzip. The output is appended to, one line a record: an interrupted run
can go on where it stopped.
"""

import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from anydepth.errors import ConfigError, RecordError
from anydepth.fields import is_missing, messages_of, prompt_of, split_answer, text_of
from anydepth.files import is_stream, writing
from anydepth.jsonl import is_gzip, open_bytes, raw_lines, read_object
from anydepth.locks import lock
from anydepth.types import ScanResult, json_number

RecordId = str | int
_BEGINNING = b'{"id": '


@dataclass(frozen=True, slots=True)
class Record:
    """One finished answer to scan.

    Attributes:
        id: The id as it stands in the file.
        messages: The conversation that was answered.
        response: The answer.
        row: All columns of the record, those with nothing in them left out.
    """

    id: RecordId
    messages: list[dict[str, Any]]
    response: str
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InputLine:
    """One line of the input: a record, or what is wrong with it."""

    number: int
    record: Record | None
    error: str | None = None


def parse_record(raw: bytes) -> Record:
    """Read one record; RecordError says what is wrong with it."""
    row = {name: value for name, value in read_object(raw).items() if not is_missing(value)}
    key = row.get("id")
    if not isinstance(key, str | int) or isinstance(key, bool) or key == "":
        raise RecordError('"id" is missing or neither text nor a whole number')
    messages, answer = _conversation(row)
    response = text_of(row, "response")
    if answer and response:
        raise RecordError("column 'messages' ends with an answer and there is a response; keep one")
    if not answer and "response" not in row:
        raise RecordError('"response" is missing; give the answer to scan')
    return Record(key, messages, answer or response, row)


def _conversation(row: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """The messages that were answered, and the answer where the assistant's turn ends them."""
    if ("prompt" in row) == ("messages" in row):
        raise RecordError('needs either "prompt" or "messages"')
    if "prompt" in row:
        return [{"role": "user", "content": prompt_of(row, "prompt")}], ""
    messages, answer = split_answer(messages_of(row["messages"], "column 'messages'"))
    if not messages:
        raise RecordError("column 'messages' has no turn that the answer could belong to")
    return messages, answer


def read_lines(path: Path) -> Iterator[InputLine]:
    """Read a file line by line, once; a bad line or a repeated id is reported in its place, a blank one passed over.

    Ids are compared as text: `1` and `"1"` are one id.
    """
    seen: dict[str, int] = {}
    for number, raw in raw_lines(path):
        try:
            record = parse_record(raw)
            if (before := seen.setdefault(str(record.id), number)) != number:
                raise RecordError(f"id {record.id!r} was used on line {before} already")
        except RecordError as error:
            yield InputLine(number, None, str(error))
        else:
            yield InputLine(number, record)


def count_lines(path: Path) -> int:
    """Count the lines that `read_lines` will yield; not of a pipe, which can be read once only."""
    return sum(1 for _ in raw_lines(path))


def scan_record(key: RecordId, result: ScanResult, *, text: str, settings: str) -> dict[str, Any]:
    """Return the record out; a score that is not a number becomes null, with the reason beside it.

    Args:
        key: The record's id.
        result: What was found.
        text: Digest of prompt and answer.
        settings: Digest of model and guard.
    """
    checks = []
    for check in result.checks:
        record: dict[str, Any] = {"depth": check.depth, "score": json_number(check.score)}
        if record["score"] is None or check.error is not None:
            record["error"] = check.error or "the score is not a number"
        checks.append(record)
    verdict = result.verdict
    return {
        "id": key,
        "checks": checks,
        "verdict": {"halt": verdict.halt, "depth": verdict.depth, "score": json_number(verdict.score)},
        "text_digest": text,
        "settings_digest": settings,
    }


class RecordWriter:
    """Append records to a file that may hold some already, or to a pipe or device.

    Opening a file locks it, repairs a last line that a killed run left half written, and learns what is `done`.

    Attributes:
        path: The file.
        done: The text digest of each record that is there, by id.

    Raises:
        ConfigError: It cannot be written, holds something else, or another process writes to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[RecordId, str] = {}
        self._settings: dict[str | None, int] = {}
        self._file: IO[bytes] | None = None
        self._broken = False
        self._lock = None if is_stream(path) else lock(path)
        try:
            with writing(path):
                if self._lock is not None and path.exists():
                    self._resume()
        except BaseException:
            self._unlock()
            raise

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._file is not None:
                with suppress(OSError) if self._broken else writing(self.path):
                    self._file.close()
        finally:
            self._unlock()

    def begin(self, settings_digest: str) -> None:
        """Open the file for records with these settings.

        Raises:
            ConfigError: The records that are there have others, or do not say theirs; or it cannot be opened.
        """
        for settings, number in self._settings.items():
            if settings is None:
                raise ConfigError(
                    f"{self.path} line {number} does not say its settings: an older anydepth wrote it; give another -o"
                )
            if settings != settings_digest:
                raise ConfigError(
                    f"{self.path} line {number} was written with another model or guard; give another -o, or the "
                    "options it was written with"
                )
        if not self.done:
            self._opened()

    def write(self, record: dict[str, Any]) -> None:
        """Append one record and hand it to the operating system; ConfigError if it does not take it."""
        line = json.dumps(record, allow_nan=False) + "\n"
        try:
            with writing(self.path):
                file = self._opened()
                file.write(line.encode("ascii"))
                file.flush()
        except BaseException:
            self._broken = True
            raise
        self.done[record["id"]] = record["text_digest"]

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            with writing(self.path):
                self._file = open_bytes(self.path, "ab")
        return self._file

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _resume(self) -> None:
        """Learn what is there; cut off what a killed run left after the last whole line."""
        whole, torn = 0, False
        try:
            with open_bytes(self.path, "rb") as file:
                for number, raw in enumerate(file, start=1):
                    torn = not raw.endswith(b"\n")
                    record = None if torn else _written(raw)
                    if record is None and not (torn and _half_written(raw)):
                        raise ConfigError(
                            f"{self.path} line {number} is not a record of an earlier scan; give another file with -o"
                        )
                    if record is not None:
                        self.done[record["id"]] = str(record.get("text_digest"))
                        self._settings.setdefault(record.get("settings_digest"), number)
                        whole += len(raw)
        except (EOFError, zlib.error):  # a gzip stream without its end
            torn = True
        except gzip.BadGzipFile as error:
            if (
                not self.done and self.path.stat().st_size > 1
            ):  # else its second, or only, stream broke off in its header
                raise ConfigError(f"{self.path} is not a gzip file ({error}); give another file with -o") from error
            torn = True
        if torn and is_gzip(self.path):
            self._rewrite(whole)
        elif torn:
            os.truncate(self.path, whole)

    def _rewrite(self, size: int) -> None:
        """Replace the file by its first `size` uncompressed bytes."""
        place = self.path.resolve()
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=place.name, suffix=self.path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            with open_bytes(self.path, "rb") as old, open_bytes(temporary, "wb") as new:
                while size > 0 and (piece := old.read1(min(size, 1 << 16))):  # pyright: ignore[reportAttributeAccessIssue]
                    new.write(piece)
                    size -= len(piece)
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)


def _half_written(raw: bytes) -> bool:
    """Say whether `raw` can be the beginning of a record that `RecordWriter` wrote."""
    return raw[: len(_BEGINNING)] == _BEGINNING[: len(raw)]


def _written(raw: bytes) -> dict[str, Any] | None:
    """The record that `RecordWriter` wrote, or None if it is none."""
    try:
        value = json.loads(raw)
    except (RecursionError, ValueError):
        return None
    if not isinstance(value, dict) or not {"id", "checks", "verdict"} <= value.keys():
        return None
    return value if isinstance(value["id"], str | int) else None
