"""Find the conversations that a reference means: a file, a folder, a named corpus or a data set on the hub."""

import difflib
import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from anydepth.conversations.dataset import Columns, Conversation, Origin, TableRow, check_labels, conversations
from anydepth.conversations.table_files import SUFFIXES, read_rows
from anydepth.errors import ConfigError, RecordError
from anydepth.extras import require
from anydepth.files import packaged_toml
from anydepth.reasons import reason

logger = logging.getLogger(__name__)

SHIPPED = "anydepth:"
"""Before the name of data that comes with this package, e.g. `anydepth:benign_prompts`."""

_HUB = re.compile(
    r"hf:(?P<repo>[^\s:@/]+/[^\s:@/]+)(?::(?P<config>[^\s:@]*))?(?::(?P<split>[^\s:@][^\s@]*))?(?:@(?P<revision>[^\s@]+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Corpus:
    """One row of `corpora.toml`: a public data set by name. The file says what the fields mean."""

    name: str
    repo: str
    licence: str
    permissive: bool
    revision: str = "main"
    configs: tuple[str, ...] = ()
    split: str | None = None
    columns: Columns | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    gated: bool = False
    about: str = ""

    @property
    def pinned(self) -> bool:
        """True if the revision is a commit, so that every load gives the same data."""
        return bool(_COMMIT.fullmatch(self.revision))


@dataclass(frozen=True, slots=True)
class Terms:
    """What the licence of a source allows; `permissive` is True if its data may go into a shipped probe."""

    licence: str
    permissive: bool


def load(ref: str | Path, *, data: Path | None = None, columns: Columns | None = None) -> list[Conversation]:
    """Load the conversations that `ref` means.

    Args:
        ref: The path of a file, or of a folder of them (a bare name is no path: write `./name`); a name, which is a
            table of `data` or else a corpus of `corpora.toml`; `hf:owner/name[:config][:split][@revision]`; or
            `anydepth:benign_prompts`, which comes with this package.
        data: Folder with local tables, among them local copies of corpora (`advbench.jsonl.gz`).
        columns: Which column is what; guessed if it is None.

    Raises:
        ConfigError: Nothing or more than one thing is meant, or it cannot be read.
        RecordError: A row is unusable.
        MissingExtra: A package that this format or the hub needs is not installed.
    """
    if isinstance(ref, str) and ref.startswith("hf:"):
        return _from_hub(ref, columns)
    if isinstance(ref, str) and ref.startswith(SHIPPED):
        return _shipped(ref, columns)
    if isinstance(ref, Path) or re.search(r"[/\\]|^[.~]", ref) or ref.lower().endswith(SUFFIXES):
        return _from_path(Path(ref).expanduser(), columns)
    copies = _local(ref, data)
    corpus = corpora().get(ref.casefold())
    if len(copies) > 1:
        raise ConfigError(f"{ref!r} may mean {' or '.join(map(str, copies))}; write the path of the one you mean")
    if copies:
        return _from_path(copies[0], columns, corpus)
    if corpus is not None:
        return _from_corpus(corpus, columns)
    close = difflib.get_close_matches(ref, [*corpora(), *map(_stem, _tables(data) if data else ())], n=3)
    raise ConfigError(
        f"{ref!r} is neither a table of {data or 'a data folder (none was given)'} nor one of the corpora "
        f"{', '.join(corpora())}; {f'did you mean {chr(44).join(close)}? ' if close else ''}"
        f"For a file write its path (./{ref}), for the hub hf:owner/name"
    )


def _shipped(ref: str, columns: Columns | None) -> list[Conversation]:
    file = resources.files("anydepth") / "data" / f"{ref.removeprefix(SHIPPED)}.jsonl"
    if not file.is_file():
        raise ConfigError(f"this package has no data called {ref!r}; there is {SHIPPED}benign_prompts")
    with resources.as_file(file) as path:
        return _from_path(path, columns)


@cache
def _table() -> Mapping[str, Any]:
    return packaged_toml("corpora.toml")


@cache
def corpora() -> Mapping[str, Corpus]:
    """Return the corpora of `corpora.toml` by name."""
    return {name: _corpus(name, dict(row)) for name, row in _table()["corpora"].items()}


def terms_of(source: str) -> Terms | None:
    """Return what the licence of a source key allows, or None if nothing is known of it."""
    known = _table()["sources"]
    row = known.get(source) or _table()["corpora"].get(source)
    row = row or next((row for pattern, row in known.items() if fnmatchcase(source, pattern)), None)
    return Terms(row["licence"], row["permissive"]) if row else None


def allows(licence: str) -> bool | None:
    """Say whether a licence allows data in a shipped probe; None if it is not one that is known."""
    return _licences().get(licence.casefold())


@cache
def _licences() -> Mapping[str, bool]:
    return {name.casefold(): allowed for name, allowed in _table()["licences"].items()}


def _licence_of(source: str) -> str | None:
    terms = terms_of(source)
    return terms.licence if terms else None


def _local(name: str, data: Path | None) -> list[Path]:
    """Return what stands for `name` in the folder of local tables."""
    if data is None:
        return []
    if not data.is_dir():
        raise ConfigError(f"the data folder {data} does not exist or is no folder; give one that holds your tables")
    return [path for path in (data / f"{name}{suffix}" for suffix in ("", *SUFFIXES)) if path.exists()]


def _tables(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name.lower().endswith(SUFFIXES))


def _stem(path: Path) -> str:
    ending = max((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), key=len, default="")
    return path.name[: len(path.name) - len(ending)]


def _from_path(path: Path, columns: Columns | None, corpus: Corpus | None = None) -> list[Conversation]:
    if not path.exists():
        raise ConfigError(f"{path} does not exist; give a file, a folder, a name, or hf:owner/name")
    tables = _tables(path) if path.is_dir() else [path]
    if not tables:
        raise ConfigError(f"the folder {path} has no table in it; put files there that end in {', '.join(SUFFIXES)}")
    found: dict[str, tuple[Path, Conversation]] = {}
    for table in tables:
        source = corpus.name if corpus else _stem(table)
        rows, chosen = _choose(read_rows(table), columns, corpus)
        origin = Origin(str(table), source, _licence_of, annotated=corpus is not None)
        for conversation in conversations(rows, columns=chosen, origin=origin):
            if conversation.id in found:
                raise RecordError(
                    f"id {conversation.id!r} is both in {found[conversation.id][0]} and in {table}; "
                    "load one of them, or give its records ids of their own"
                )
            found[conversation.id] = table, conversation
    rows = [conversation for _, conversation in found.values()]
    return rows if corpus or len(tables) == 1 else check_labels(rows, str(path))


def _choose(
    rows: Iterator[TableRow], columns: Columns | None, corpus: Corpus | None
) -> tuple[Iterable[TableRow], Columns | None]:
    """Return the columns to read `rows` with: the given ones, else the corpus's where the rows have its form."""
    if columns or corpus is None or corpus.columns is None:
        return rows, columns
    first = list(itertools.islice(rows, 1))
    row = first[0][1] if first else {}
    normalised = "id" in row and row.keys() & {"prompt", "messages"}
    own = corpus.columns.named <= row.keys() and not normalised
    return itertools.chain(first, rows), corpus.columns if own else None


def _from_corpus(corpus: Corpus, columns: Columns | None) -> list[Conversation]:
    found = []
    for config in corpus.configs or (None,):
        source = f"{corpus.name}-{config}" if len(corpus.configs) > 1 else corpus.name
        origin = Origin(
            f"{corpus.repo} ({corpus.name})", source, lambda _: corpus.licence, {"revision": corpus.revision}, True
        )
        rows = _hub_rows(corpus, config, origin.name)
        found += conversations(rows, columns=columns or corpus.columns, origin=origin)
    return found


def _from_hub(ref: str, columns: Columns | None) -> list[Conversation]:
    match = _HUB.fullmatch(ref)
    if match is None:
        raise ConfigError(f"{ref!r} is no reference to the hub; write hf:owner/name[:config][:split][@revision]")
    repo, config, split = match["repo"], match["config"] or None, match["split"]
    if Path(repo).exists():  # `datasets` would read the folder
        raise ConfigError(
            f"{ref!r} means the hub, and there is a local folder {repo}; write ./{repo} or work elsewhere"
        )
    known = next((row for row in corpora().values() if row.repo.casefold() == repo.casefold()), None)
    corpus = replace(
        known or Corpus(repo, repo, "", False), repo=repo, split=split, revision=match["revision"] or "main"
    )
    rows, chosen = _choose(_hub_rows(corpus, config, ref), columns, corpus)
    origin = Origin(ref, corpus.name, lambda _: corpus.licence or None, {"revision": corpus.revision}, True)
    return conversations(rows, columns=chosen, origin=origin)


def _hub_rows(corpus: Corpus, config: str | None, name: str) -> Iterator[TableRow]:
    datasets = require("datasets", extra="fit")
    if not corpus.pinned:
        logger.warning("%s is loaded at revision %r, which is not pinned and may change", name, corpus.revision)
    split = None if corpus.split == "*" else corpus.split
    try:
        found = datasets.load_dataset(
            corpus.repo, config, split=split, revision=corpus.revision, **dict(corpus.options)
        )
    except Exception as error:  # whatever the hub, the network and the builder of this data set raise
        raise ConfigError(f"{name} cannot be loaded: {reason(error)}; {_remedy(corpus, error)}") from error
    splits = {split: found} if split else dict(found)
    if len(splits) > 1 and corpus.split != "*":
        raise ConfigError(f"{name} has the splits {', '.join(splits)}; write hf:{corpus.repo}:{config or ''}:SPLIT")
    for split_name, table in splits.items():
        for number, row in enumerate(table, start=1):
            yield f"{split_name} row {number}", row


def _remedy(corpus: Corpus, error: Exception) -> str:
    if corpus.gated or "gated" in str(error).lower():
        page = f"https://huggingface.co/datasets/{corpus.repo}"
        return f"it is gated: accept its conditions at {page}, then log in with `hf auth login` (or set HF_TOKEN)"
    return "check the name, the split and the network, or load a local copy"


def _corpus(name: str, row: dict[str, Any]) -> Corpus:
    columns: Any = row.pop("columns", None)
    if columns is not None:
        columns = {key: tuple(value) if isinstance(value, list) else value for key, value in columns.items()}
        if "labels" in columns:
            columns["labels"] = {value: meaning or None for value, meaning in columns["labels"].items()}
        columns = Columns(**columns)
    return Corpus(name, columns=columns, configs=tuple(row.pop("configs", ())), **row)
