"""Read and write what a user names: one way for text, one for whole files, and pipes distinguished from files."""

import gzip
import json
import os
import stat
import sys
import tomllib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from anydepth import atomic
from anydepth.errors import ConfigError

_DESCRIPTORS = ("/dev/std", "/dev/fd/", "/proc/self/fd/")
"""Beginnings of names that stand for what the shell has opened already."""


def is_stream(path: Path) -> bool:
    """Say whether `path` is a pipe, a terminal or a device: read or written once, with no way back in it."""
    if str(path.absolute()).startswith(_DESCRIPTORS):
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Turn what can go wrong while `path` is read into a ConfigError that names it."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError(f"{path} is not a whole gzip file: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error


def read_text(path: Path, name: str | None = None) -> str:
    """Return the text of a UTF-8 file without its byte order mark, every line end as a line feed.

    Args:
        path: The file.
        name: What messages call it; its path by default.

    Raises:
        ConfigError: It cannot be read, or is not UTF-8.
    """
    with reading(name or path):
        return decode_text(path.read_bytes(), name or str(path))


def read_stdin() -> str:
    """Return the text of standard input, read as `read_text` reads a file; ConfigError if there is none."""
    if sys.stdin is None:
        raise ConfigError("standard input is closed; give the text as an argument or a file")
    with reading("standard input"):
        return decode_text(sys.stdin.buffer.read(), "standard input")


def decode_text(content: bytes, name: str) -> str:
    """Return `content` as text as `read_text` does; ConfigError, with the place, if it is not UTF-8."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {error.start}"
        raise ConfigError(f"{name} is not UTF-8 text ({where}); convert it first") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_text(text: str, name: str) -> str:
    """Return `text`; ConfigError if it holds what no text can: bytes that were not UTF-8, or half a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{name} holds a character that is no text (place {error.start}): a byte that is not UTF-8, or half a "
            "surrogate pair; convert it first"
        ) from error
    return text


def parse_json(text: str, name: str) -> Any:
    """Return the value that `text` is the JSON of; ConfigError says what `name` holds instead."""
    try:
        value = json.loads(text)
        again = json.dumps(value, ensure_ascii=False) if "\\u" in text else ""
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ConfigError(f"{name} is not JSON: {reason}") from error
    check_text(again, name)
    return value


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return the object of a JSON file; ConfigError if it is not `what`, e.g. `the manifest of a scan`."""
    value = parse_json(read_text(path), str(path))
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is a {type(value).__name__}, not {what}; remove it or give another place")
    return value


def read_toml(path: Path, name: str | None = None) -> dict[str, Any]:
    """Return the table of a TOML file; ConfigError if it cannot be read, or is not TOML."""
    try:
        return tomllib.loads(read_text(path, name))
    except (RecursionError, tomllib.TOMLDecodeError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ConfigError(f"{name or path} is not TOML: {reason}") from error


def packaged_toml(name: str) -> dict[str, Any]:
    """Return the table of the TOML file `name` of this package's folder `data`."""
    return tomllib.loads((resources.files("anydepth") / "data" / name).read_text(encoding="utf-8"))


def public_name(value: object) -> str:
    """Return `value` as text; of what is a path here its last part only, since the rest is of this machine."""
    path = Path(str(value))
    return path.absolute().name if path.exists() else str(value)


def check_destination(path: Path, option: str) -> None:
    """Refuse a place that no file can be written to, before the work whose result is to go there.

    Args:
        path: Where a file is to go.
        option: What the user gave it with, e.g. `--json`.

    Raises:
        ConfigError: It is a folder, or the folder that it is to be in is not there or takes no file.
    """
    folder = path.absolute().parent
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; give the name of a file")
    if not folder.is_dir():
        raise ConfigError(f"{option} {path}: the folder {folder} does not exist")
    if not os.access(path if is_stream(path) else folder, os.W_OK):
        raise ConfigError(f"{option} {path} cannot be written; give another place")


def check_folder(path: Path, option: str) -> None:
    """Refuse a file, or a place below one, where a folder is to be, before the work whose result is to go there.

    Args:
        path: The folder; it need not be there.
        option: What the user gave it with, e.g. `-o`.

    Raises:
        ConfigError: It is no folder, or cannot become one.
    """
    there = next(each for each in (path.absolute(), *path.absolute().parents) if os.path.lexists(each))
    if not there.is_dir():
        raise ConfigError(f"{option} {path}: {there} is no folder; give another place")


def write_whole(path: Path, text: str) -> None:
    """Write a UTF-8 file so that it is there whole or not at all; a pipe or device is written to as it is.

    Raises:
        ConfigError: It cannot be written; what was there before is kept.
    """
    with writing(path):
        atomic.write_whole(path, text.encode("utf-8"))


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Turn the OSError of a write into a ConfigError that names `path`; a reader that has gone stays what it is."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror or error}; make room or give another place, then run it again"
        ) from error
