"""Read the rows of a table: JSON lines, JSON, CSV, TSV or Parquet, gzipped or not."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from anydepth.conversations.dataset import TableRow
from anydepth.errors import ConfigError, RecordError
from anydepth.extras import require
from anydepth.files import is_stream
from anydepth.jsonl import as_object, open_bytes, raw_lines, read_object, read_value, reading

_TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (*_TEXT_SUFFIXES, *(suffix + ".gz" for suffix in _TEXT_SUFFIXES), ".parquet")
"""Endings of the files that can be read."""


def read_rows(path: Path) -> Iterator[TableRow]:
    """Read the rows of one file, each with its place in it.

    Raises:
        ConfigError: The file cannot be read, or has a name that does not say its format.
        RecordError: A row is not readable.
        MissingExtra: It is a Parquet file and pyarrow is not installed.
    """
    if is_stream(path):
        raise ConfigError(f"{path} is a pipe or a device, which cannot be read twice; write it to a file first")
    if not path.name.lower().endswith(SUFFIXES):
        raise ConfigError(f"{path} does not say its format; give a name that ends in {', '.join(SUFFIXES)}")
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    read = {"json": _json_rows, "csv": _csv_rows, "tsv": _csv_rows, "parquet": _parquet_rows}.get(kind, _jsonl_rows)
    try:
        with reading(path):
            yield from read(path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start} of what was read") from error


def _open(path: Path) -> IO[str]:
    return io.TextIOWrapper(open_bytes(path, "rb"), encoding="utf-8-sig", newline="")


def _jsonl_rows(path: Path) -> Iterator[TableRow]:
    return _read_each(path, "line", raw_lines(path), read_object)


def _read_each(
    path: Path, what: str, found: Iterable[tuple[int, Any]], read: Callable[[Any], Mapping[str, Any]]
) -> Iterator[TableRow]:
    """The rows that `read` makes of what is `found`, by number; an error says which of them it was."""
    for number, each in found:
        try:
            row = read(each)
        except RecordError as error:
            raise RecordError(f"{path}, {what} {number}: {error}") from error
        yield f"{what} {number}", row


def _json_rows(path: Path) -> Iterator[TableRow]:
    try:
        with _open(path) as file:
            value = read_value(file.read())
    except RecordError as error:
        raise RecordError(f"{path} (if it has one record a line, call it .jsonl): {error}") from error
    lists = [item for item in value.values() if isinstance(item, list)] if isinstance(value, dict) else [value]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise RecordError(f"{path} is no list of records, nor an object with one such list in it")
    return _read_each(path, "record", enumerate(lists[0], start=1), as_object)


def _check_once(columns: Iterable[str], path: Path) -> None:
    """Refuse a table with a column twice: which one is meant is not certain."""
    if twice := [name for name, times in Counter(columns).items() if times > 1]:
        raise RecordError(f"{path} has the column {twice[0]!r} twice; rename or remove one")


def _csv_rows(path: Path) -> Iterator[TableRow]:
    limit = csv.field_size_limit(2**31 - 1)  # answers are longer than the 128 KiB that a field may have by default
    try:
        with _open(path) as file:
            tab = path.name.lower().removesuffix(".gz").endswith(".tsv")
            reader = csv.DictReader(file, delimiter="\t" if tab else ",", strict=True)
            _check_once(reader.fieldnames or (), path)
            rows = [(f"line {reader.line_num}", row) for row in reader]
    except csv.Error as error:
        raise RecordError(f"{path}: not a readable table: {error}") from error
    finally:
        csv.field_size_limit(limit)
    for where, row in rows:
        if None in row:
            raise RecordError(f"{path}, {where}: has more fields than the head of the table; quote those with commas")
        yield where, {name: value or None for name, value in row.items()}


def _parquet_rows(path: Path) -> Iterator[TableRow]:
    parquet, arrow = require("pyarrow.parquet", extra="fit"), require("pyarrow", extra="fit")
    try:
        with parquet.ParquetFile(path) as table:
            _check_once(table.schema_arrow.names, path)
            rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
            yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))
    except arrow.ArrowException as error:
        raise ConfigError(f"{path} is not a readable Parquet file: {error}") from error
