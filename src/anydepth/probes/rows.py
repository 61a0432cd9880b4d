"""Read the rows of a table: JSON lines, JSON, CSV, TSV or Parquet, gzipped or not."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from anydepth.errors import ConfigError, RecordError
from anydepth.extras import require
from anydepth.probes.dataset import Row

_TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (*_TEXT_SUFFIXES, *(suffix + ".gz" for suffix in _TEXT_SUFFIXES), ".parquet")
"""Endings of the files that can be read."""


def read_rows(path: Path) -> Iterator[Row]:
    """Read the rows of one file, each with its place in it.

    Raises:
        ConfigError: The file cannot be read, or has a name that does not say its format.
        RecordError: A row is not readable.
        MissingExtra: It is a Parquet file and pyarrow is not installed.
    """
    if not path.name.lower().endswith(SUFFIXES):
        raise ConfigError(f"{path} does not say its format; give a name that ends in {', '.join(SUFFIXES)}")
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    read = {"json": _json_rows, "csv": _csv_rows, "tsv": _csv_rows, "parquet": _parquet_rows}.get(kind, _jsonl_rows)
    try:
        yield from read(path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError(f"{path} is not a whole gzip file: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start} of what was read") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error


def _open(path: Path) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"line {number}", _object(_json(line, f"{path}, line {number}"), f"{path}, line {number}")


def _json_rows(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        value = _json(file.read(), f"{path} (if it has one record a line, call it .jsonl)")
    lists = [item for item in value.values() if isinstance(item, list)] if isinstance(value, dict) else [value]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise RecordError(f"{path} is no list of records, nor an object with one such list in it")
    for number, record in enumerate(lists[0], start=1):
        yield f"record {number}", _object(record, f"{path}, record {number}")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RecordError(f"{where}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except (RecursionError, ValueError) as error:
        raise RecordError(f"{where}: not usable JSON ({type(error).__name__})") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecordError(f"{where}: a {type(value).__name__}, not an object with columns")
    return value


def _csv_rows(path: Path) -> Iterator[Row]:
    limit = csv.field_size_limit(2**31 - 1)  # answers are longer than the 128 KiB that a field may have by default
    try:
        with _open(path) as file:
            tab = path.name.lower().removesuffix(".gz").endswith(".tsv")
            reader = csv.DictReader(file, delimiter="\t" if tab else ",", strict=True)
            rows = [(f"line {reader.line_num}", row) for row in reader]
    except csv.Error as error:
        raise RecordError(f"{path}: not a readable table: {error}") from error
    finally:
        csv.field_size_limit(limit)
    for where, row in rows:
        if None in row:
            raise RecordError(f"{path}, {where}: has more fields than the head of the table; quote those with commas")
        yield where, {name: value or None for name, value in row.items()}


def _parquet_rows(path: Path) -> Iterator[Row]:
    parquet, arrow = require("pyarrow.parquet", extra="fit"), require("pyarrow", extra="fit")
    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except arrow.ArrowException as error:
        raise ConfigError(f"{path} is not a readable Parquet file: {error}") from error
