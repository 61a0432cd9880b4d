"""Read the JSON lines of a file, gzipped or not, each as one object."""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from anydepth.errors import RecordError
from anydepth.files import reading

_MARK = b"\xef\xbb\xbf"


def is_gzip(path: Path) -> bool:
    """Say whether the name of a file says that it is gzip: `.gz`, in whatever case."""
    return path.suffix.lower() == ".gz"


def open_bytes(path: Path, mode: str) -> IO[bytes]:
    """Open a file in the binary `mode`; one that is called `.gz` is packed or unpacked on the way."""
    if is_gzip(path):
        return gzip.open(path, mode)  # pyright: ignore[reportReturnType]
    return path.open(mode)


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield each line that is not blank with its number, the first without a byte order mark.

    Raises:
        ConfigError: The file cannot be read, or is not a whole gzip file.
    """
    with reading(path), open_bytes(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                yield number, raw.removeprefix(_MARK) if number == 1 else raw


def read_object(raw: bytes) -> dict[str, Any]:
    """Return the object that one line is; RecordError says what it is instead."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"not UTF-8 text: {error.reason} at byte {error.start}") from error
    return as_object(read_value(text))


def read_value(text: str) -> Any:
    """Return the value of a JSON text; RecordError if it is none, or says one thing twice."""
    try:
        value = json.loads(text, object_pairs_hook=_once)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise RecordError(f"not JSON: {error.msg} at {place}") from error
    except RecursionError as error:
        raise RecordError("not usable JSON: nested too deeply") from error
    except RecordError:
        raise
    except UnicodeEncodeError:
        raise RecordError("holds half a surrogate pair, which is no text") from None
    except ValueError as error:
        raise RecordError(f"not usable JSON: {error}") from error


def as_object(value: Any) -> dict[str, Any]:
    """Return `value` if it is an object; RecordError says what it is instead."""
    if not isinstance(value, dict):
        raise RecordError(f"a {type(value).__name__}, not an object with columns")
    return value


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; a name that is there twice has no certain value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RecordError(f"has {twice!r} twice; keep one")
    return found
