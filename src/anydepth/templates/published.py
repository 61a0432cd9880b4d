"""Read the per-model facts of `models.toml`: published headers and sites, stand-in templates, channel markers."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Literal

from anydepth.errors import ConfigError
from anydepth.files import packaged_toml, read_toml

ENVIRONMENT = "ANYDEPTH_MODELS"
"""Environment variable with the path of a file of your own rows; they come before the shipped ones."""

_SNAPSHOT = re.compile(r"(?:^|[/\\])models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]")


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """One `[[model]]` row: what was published for a model, and what stands in for its chat template.

    Attributes:
        pattern: Glob over the hub id, e.g. `google/gemma-2-*-it`.
        header: Safety Tokens as text: end of turn, then the whole generation prompt.
        source: Where the facts are from.
        answer: Text that must follow `header` to be in the answer channel; empty for ordinary templates.
        probe_header: Text that the published probe injects; it reads the last token of it. Part of `header + answer`.
        read_token: Text of the token that the published probe reads.
        layer: Block of the published site, counted from 0.
        module: Module of the published site.
        use: `fallback` (only where the template says too little) or `always`.
        template: Chat template for tokenizers that come without one.
    """

    pattern: str
    header: str
    source: str = ""
    answer: str = ""
    probe_header: str | None = None
    read_token: str | None = None
    layer: int | None = None
    module: str = "input_layernorm"
    use: Literal["fallback", "always"] = "fallback"
    template: str | None = None

    @property
    def site(self) -> str | None:
        """The published site in the form that `Site.parse` reads, e.g. `23.input_layernorm`."""
        return None if self.layer is None else f"{self.layer}.{self.module}"


@dataclass(frozen=True, slots=True)
class Channel:
    """One `[[channel]]` row: how a template sets thoughts apart from the answer.

    Attributes:
        think_open: Text before the thoughts.
        think_close: Text after them.
        skip: Text that closes an opened thinking section with no thought in it and brings the answer.
        answer_open: Text that opens the answer; empty where it needs no opener.
    """

    think_open: str
    think_close: str
    skip: str
    answer_open: str = ""


@dataclass(frozen=True, slots=True)
class _Facts:
    models: tuple[PublishedModel, ...]
    channels: tuple[Channel, ...]
    role_words: tuple[tuple[str, ...], ...]


def published(name: str) -> PublishedModel | None:
    """Return the row of a model by hub id or local path, or None if none fits.

    Raises:
        ConfigError: The file that `ANYDEPTH_MODELS` names cannot be read.
    """
    hub_id = hub_name(name)
    return next((row for row in _facts().models if _fits(row.pattern, hub_id)), None)


def channel_of(template: str) -> Channel | None:
    """Return how `template` (its Jinja text) writes thoughts, or None if it has one channel only."""
    return next((row for row in _facts().channels if row.think_open in template), None)


def role_words() -> tuple[tuple[str, ...], ...]:
    """Return the words by which templates name the assistant, then those by which they name the answer."""
    return _facts().role_words


def hub_name(name: str) -> str:
    """Return the hub id behind `name`: unchanged, read from a hub cache path, or the last component of another path."""
    if snapshot := _SNAPSHOT.search(name):
        return f"{snapshot[1]}/{snapshot[2]}"
    parts = [part for part in re.split(r"[/\\]", name) if part]
    local = name.startswith(("/", ".", "~")) or "\\" in name or len(parts) > 2
    return parts[-1] if local and parts else "/".join(parts)


def _fits(pattern: str, hub_id: str) -> bool:
    if "/" not in hub_id:  # a path, or a bare name: the owner is not known
        pattern = pattern.rpartition("/")[2]
    return fnmatchcase(hub_id.lower(), pattern.lower())


def _facts() -> _Facts:
    return _load(os.environ.get(ENVIRONMENT) or None)


@cache
def _load(own_file: str | None) -> _Facts:
    shipped = packaged_toml("models.toml")
    own = _read(Path(own_file)) if own_file else {}
    templates = shipped.get("templates", {}) | own.get("templates", {})
    origin = own_file or "models.toml"
    return _Facts(
        tuple(_model(row, templates, origin) for row in [*own.get("model", ()), *shipped["model"]]),
        tuple(_row(Channel, row, origin) for row in [*own.get("channel", ()), *shipped["channel"]]),
        tuple((*own.get(key, ()), *shipped[key]) for key in ("role_words", "answer_words")),
    )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        table = read_toml(path.expanduser())
    except ConfigError as error:
        raise ConfigError(f"{ENVIRONMENT} is {str(path)!r}, which cannot be read: {error}") from error
    for key in ("model", "channel"):
        rows = table.get(key, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ConfigError(f"{path}: {key} is {rows!r}; write each row under a line [[{key}]]")
    return table


def _model(row: Mapping[str, Any], templates: Mapping[str, str], origin: str) -> PublishedModel:
    template = row.get("template")
    model = _row(PublishedModel, {**row, "template": templates.get(template or "", template)}, origin)
    if not model.header:
        raise ConfigError(f"{origin}: header is empty in row {model.pattern!r}; write the Safety Tokens as text")
    if model.use not in ("fallback", "always"):
        raise ConfigError(f"{origin}: use is {model.use!r} in row {model.pattern!r}; write fallback or always")
    return model


def _row(kind: type, row: Mapping[str, Any], origin: str) -> Any:
    known = {field.name for field in fields(kind)}
    if unknown := sorted(set(row) - known):
        raise ConfigError(f"{origin}: a row has the unknown key {unknown[0]!r}; keys are {', '.join(sorted(known))}")
    try:
        return kind(**row)
    except TypeError as error:  # a required key is missing
        raise ConfigError(f"{origin}: the row {dict(row)} is incomplete: {error}") from error
