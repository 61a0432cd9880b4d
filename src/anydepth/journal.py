"""Append records to a file that a killed run may have left half written, and go on with the same settings only."""

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

from anydepth import atomic
from anydepth.digests import short_digest
from anydepth.errors import ConfigError
from anydepth.files import is_stream, read_json, write_whole, writing
from anydepth.jsonl import is_gzip, open_bytes

_TEXTS = ("messages", "response")


class Journal:
    """A JSONL file of records, and beside it what made them and which were left out.

    `answers.jsonl` has the records, `answers.jsonl.left-out` the ids and reasons of those that are not in it, and
    `answers.jsonl.run.json` the settings. A name that ends in `.gz` is gzip; a pipe or a device has nothing beside it.

    Args:
        path: The file.
        settings: What the records depend on, JSON-ready; None where `begin` is to be called with them.
        keep: What of a record is kept in memory; by default all but its text.

    Attributes:
        rows: What is kept of the records, by id.
        left_out: Reasons by id.

    Raises:
        ConfigError: The file cannot be written, is not such a file or was begun with other settings.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any] | None = None,
        *,
        keep: Callable[[Mapping[str, Any]], Any] = lambda row: {name: row[name] for name in row if name not in _TEXTS},
    ) -> None:
        self.path, self._keep = path, keep
        self._settings, self._beside = (path.with_name(f"{path.name}.{end}") for end in ("run.json", "left-out"))
        self.rows: dict[Any, Any] = {}
        self.left_out: dict[Any, str] = {}
        self._digests: set[str | None] = set()
        self._torn: dict[Path, tuple[int, int]] = {}  # file -> its whole lines, and their bytes unpacked
        self._files: dict[Path, IO[bytes]] = {}
        self._broken = False
        if not is_stream(path):
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                for row in self._whole_lines(path):
                    self.rows[row["id"]] = keep(row)
                    self._digests.add(row.get("settings_digest"))
                self.left_out = {row["id"]: str(row.get("reason")) for row in self._whole_lines(self._beside)}
        if settings is not None:
            self.begin(settings)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        for path, file in self._files.items():  # a write that failed has been reported already
            with suppress(OSError) if self._broken else writing(path):
                file.close()

    def __contains__(self, key: object) -> bool:
        return key in self.rows or key in self.left_out

    def check(self, settings: Mapping[str, Any]) -> None:
        """ConfigError if the records were begun with other values of these settings, or if nothing says with which."""
        if is_stream(self.path):
            return
        begun = self._begun()
        known = settings_before(self._settings, settings, self.path if begun else None) is not None
        if begun and not known and (None in self._digests or not self._digests):
            raise _foreign(self.path, f"{self._settings.name} is not there, nor are settings in its records")

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Open the file for records with these settings; ConfigError if the records that are there have others."""
        if not is_stream(self.path):
            self.check(settings)
            begun, known = self._begun(), self._settings.exists()
            if begun and not known and self._digests != {digest_of(settings)}:
                raise ConfigError(
                    f"{self.path} was written with other settings; give another place, or the former ones"
                )
            with writing(self.path):
                self._cut()
            if not begun or not known:
                write_whole(self._settings, json.dumps(_plain(settings), indent=2, ensure_ascii=False) + "\n")
        if not self.rows:
            self._open(self.path)

    def write(self, key: str | int, row: Mapping[str, Any]) -> None:
        """Append one record and hand it to the operating system; ConfigError if it does not take it."""
        self._append(self.path, row)
        self.rows[key] = self._keep(row)

    def leave_out(self, key: str, reason: str) -> None:
        """Note why a record is not in the file; ConfigError if that cannot be written."""
        self._append(self._beside, {"id": key, "reason": reason})
        self.left_out[key] = reason

    def _append(self, path: Path, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, allow_nan=False) + "\n"
        try:
            file = self._open(path)
            with writing(path):
                file.write(line.encode("ascii"))
                file.flush()
        except BaseException:
            self._broken = True
            raise

    def _open(self, path: Path) -> IO[bytes]:
        if path not in self._files:
            with writing(path):
                self._files[path] = open_bytes(path, "ab")
        return self._files[path]

    def _begun(self) -> bool:
        return any(path.exists() and path.stat().st_size for path in (self.path, self._beside))

    def _whole_lines(self, path: Path) -> Iterator[dict[str, Any]]:
        """The whole records of a file; what a killed run left behind them is noted for `_cut`."""
        count, size, torn = 0, 0, False
        try:
            with open_bytes(path, "rb") as file:
                for raw in file:
                    if torn := not raw.endswith(b"\n"):
                        break
                    yield _record(path, raw)
                    count, size = count + 1, size + len(raw)
        except FileNotFoundError:
            return
        except gzip.BadGzipFile as error:
            if not count and path.stat().st_size > 1:  # else a stream broke off in its header
                raise _foreign(path, error) from error
            torn = True
        except (EOFError, zlib.error):  # a gzip stream without its end
            torn = True
        if torn:
            self._torn[path] = count, size

    def _cut(self) -> None:
        """Cut off what a killed run left behind the last whole line."""
        for path, (count, size) in self._torn.items():
            if is_gzip(path):
                with open_bytes(path, "rb") as file:
                    whole = b"".join(islice(file, count))
                atomic.write_whole(path, gzip.compress(whole))
            else:
                os.truncate(path, size)


def settings_before(path: Path, now: Mapping[str, Any], of: Path | None) -> dict[str, Any] | None:
    """The settings that an earlier run left in the JSON file `path`; None if there is no such file.

    Args:
        path: The file.
        now: The settings of this run, or some of them.
        of: What was begun with the settings in the file; None if they need not be the same.

    Raises:
        ConfigError: A setting is another one now, which the message names with both values; or the file has no such
            settings.
    """
    if not path.exists():
        return None
    before = read_json(path, "the settings of an earlier run")
    for name, value in _plain(now).items():
        if name not in before:
            raise ConfigError(f"{path} has no {name!r}, so it is not of such a run; remove it or give another place")
        if of is not None and before[name] != value:
            raise ConfigError(
                f"{of} was begun with {name} {before[name]!r}, now it is {value!r}; give another place (-o), or the "
                "options it was begun with"
            )
    return before


def digest_of(settings: Mapping[str, Any]) -> str:
    """A short digest of settings, 16 hex digits; a record may carry it as `settings_digest`."""
    return short_digest(json.dumps(_plain(settings), sort_keys=True))


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings, default=str))


def _record(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        row = json.loads(raw)
    except (RecursionError, ValueError) as error:
        raise _foreign(path, error) from error
    if not isinstance(row, dict) or not isinstance(row.get("id"), str | int):
        raise _foreign(path, "a line is no record with an id")
    return row


def _foreign(path: Path, why: object) -> ConfigError:
    return ConfigError(f"{path} was not written by an earlier run ({why}); give another file")
