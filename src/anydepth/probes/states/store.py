"""Keep the hidden states of many checks on disk, as a Parquet dataset that other tools can open."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from anydepth.atomic import replacing, write_whole
from anydepth.backends.protocol import ModelIdentity, Site
from anydepth.digests import short_digest
from anydepth.errors import StoreError
from anydepth.extras import require
from anydepth.probes.states.facts import FACTS, AnswerFacts
from anydepth.templates.header import token_text

FORMAT_VERSION = 2
"""Layout of the store; of 1, nothing said at which depths an answer was asked to be read."""

_MANIFEST = "manifest.json"
_IDENTITY = ("answer", "view", "reading")
_STRETCH = ("harm_begins", "harm_ends")
_NUMBERS = ("depth", "length", *_STRETCH)
_FACTS = ("id", "answer", "view", "reading", "split", "source", "label", "licence", "prompt_key", *_NUMBERS)

Identity = tuple[str, str, str]
"""What decides the states of an answer: its key, the view and the reading."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the states of a store are.

    Attributes:
        model: The model that was read.
        template_digest: Digest of its chat template.
        suffix: What was appended at each depth: `header` for the Safety Tokens, else a control (`newline`, ...), or
            trained Safety Tokens, with a digest of them.
        header_ids: The tokens that were appended; of trained ones those of the template, which they stand in for.
        header_tokens: Printable form of each.
        read_index: The template's read token, the last one for a control.
        sites: The sites that were read.
        tokens: Which tokens were read, as `Read.token`: indices in the header, -1 for the last token before it, and
            means over answer tokens.
        dtype: Type that the model ran in; the states are stored as float32 whatever it is.
        versions: Versions of the packages that collected.
        adapter: The PEFT adapter that the model ran with, if any; its fingerprint is that of the model below it.
        format_version: Layout of the store.
    """

    model: ModelIdentity
    template_digest: str
    suffix: str
    header_ids: tuple[int, ...]
    header_tokens: tuple[str, ...]
    read_index: int
    sites: tuple[Site, ...]
    tokens: tuple[int, ...]
    dtype: str
    versions: Mapping[str, str]
    adapter: str | None = None
    format_version: int = FORMAT_VERSION

    def record(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**asdict(self), "sites": [str(site) for site in self.sites]}


@dataclass(frozen=True, slots=True)
class CheckRow(AnswerFacts):
    """What is known of one check beside its states; the columns of the store.

    What of it the data says (`AnswerFacts`) decides no state, and may be corrected later.

    Attributes:
        answer: Digest of the conversation's text: the same conversation is collected once.
        view: In which context the answer was read: `own`, or `shadow` for a neutral user turn.
        depth: Depth of the check in tokens.
        length: Length of the answer in tokens, as far as it was read.
        reading: At which depths and how far the answer is read, as `CollectPlan.reading` says it.
        harm_begins: Number of tokens before the stretch that the label is about (`Conversation.stretch`); -1 where it
            is about the whole answer. Shards of before there were stretches have no such column, which means -1.
        harm_ends: Number of tokens up to the end of that stretch; -1 as well.
    """

    answer: str
    view: str
    depth: int
    length: int
    reading: str = ""
    harm_begins: int = -1
    harm_ends: int = -1


@dataclass(frozen=True, slots=True)
class Checks:
    """Checks that were read from a store: columns of equal length and the states of some reads.

    Attributes:
        columns: Each fact of `CheckRow` as an array `[checks]`.
        states: float32 `[checks, reads, hidden_size]`, in the order of the reads.
    """

    columns: Mapping[str, np.ndarray]
    states: np.ndarray

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    @property
    def host_keys(self) -> np.ndarray:
        """Key of the prompt whose request was read before each answer, str `[checks]`: its own if nothing else is said.

        Column `host_key`, which answers under other requests have (`Conversation.host_key`).
        """
        return self.columns.get("host_key", self["prompt_key"])

    def where(self, rows: np.ndarray) -> "Checks":
        """The checks that `rows` picks: a mask, bool `[checks]`, or their indices."""
        return replace(
            self, columns={name: column[rows] for name, column in self.columns.items()}, states=self.states[rows]
        )


class StateStore:
    """A folder: `manifest.json` and one Parquet file per group of answers, each written whole or not at all.

    Args:
        path: The folder. It is made by `create`.

    Raises:
        StoreError: There is no store at `path`, or its manifest cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = _read_manifest(self.path / _MANIFEST)

    @classmethod
    def create(cls, path: str | Path, manifest: Manifest) -> "StateStore":
        """Make the folder, or open the one that is there; StoreError if it holds other states than `manifest` says."""
        path = Path(path)
        if not (path / _MANIFEST).exists():
            try:
                (path / "states").mkdir(parents=True, exist_ok=True)
                write_whole(path / _MANIFEST, json.dumps(manifest.record(), indent=2).encode())
            except OSError as error:
                raise StoreError(f"cannot make a store at {path}: {error.strerror or error}") from error
        store = cls(path)
        _check_same(path, store.manifest, manifest)  # another process may have made it at the same moment
        return store

    def shards(self) -> list[Path]:
        """The Parquet files, in order of their names."""
        return sorted((self.path / "states").glob("*.parquet"))

    def present(self) -> dict[Identity, AnswerFacts]:
        """Which answers are there, read how, and what the data said of each when it was written."""
        found: dict[Identity, AnswerFacts] = {}
        for shard in self.shards():
            columns = [column.to_pylist() for column in self._columns(shard).columns]
            for answer, view, reading, *facts in zip(*columns, strict=True):
                found[answer, view, reading] = AnswerFacts(*facts)
        return found

    def correct(self, facts: Mapping[Identity, AnswerFacts]) -> int:
        """Write down what the data says now of answers that are there; returns how many said something else before.

        The states do not depend on it and stay as they are. Each shard is replaced whole.
        """
        pa, parquet = require("pyarrow", extra="fit"), require("pyarrow.parquet", extra="fit")
        corrected: set[Identity] = set()
        # another process that collects into this store may correct other answers of the same shard
        with FileLock(self.path / "correct.lock"):
            for shard in self.shards():
                table = self._columns(shard)
                keys = list(zip(*(table[name].to_pylist() for name in _IDENTITY), strict=True))
                before = list(zip(*(table[name].to_pylist() for name in FACTS), strict=True))
                now = [astuple(facts[key]) if key in facts else old for key, old in zip(keys, before, strict=True)]
                changed = {key for key, old, new in zip(keys, before, now, strict=True) if old != new}
                if not changed:
                    continue
                corrected |= changed
                whole = parquet.read_table(shard)
                for place, name in enumerate(FACTS):
                    column = pa.array([row[place] for row in now], type=pa.string())
                    whole = whole.set_column(whole.schema.get_field_index(name), name, column)
                self._write_shard(shard, whole)
        return len(corrected)

    def _columns(self, shard: Path) -> Any:
        """Identity and facts of a shard's checks, as a table."""
        pa, parquet = require("pyarrow", extra="fit"), require("pyarrow.parquet", extra="fit")
        try:
            return parquet.read_table(shard, columns=[*_IDENTITY, *FACTS])
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{shard} is not a whole Parquet file ({error}); remove it and collect again") from error

    def write(self, name: str, rows: Sequence[CheckRow], states: Mapping[Site, np.ndarray]) -> Path:
        """Add one shard; `states` are per site float32 `[len(rows), len(tokens), hidden_size]`."""
        pa = require("pyarrow", extra="fit")
        columns: dict[str, Any] = {fact: pa.array([getattr(row, fact) for row in rows]) for fact in _FACTS}
        for site in self.manifest.sites:
            for place, token in enumerate(self.manifest.tokens):
                values = np.ascontiguousarray(states[site][:, place], dtype=np.float32)
                flat = pa.array(values.ravel())
                columns[column_name(site, token)] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        target = self.path / "states" / f"{name}.parquet"
        self._write_shard(target, pa.table(columns))
        return target

    def _write_shard(self, target: Path, table: Any) -> None:
        """Write a shard whole or not at all."""
        parquet = require("pyarrow.parquet", extra="fit")
        wide = [name for name in table.column_names if name not in _FACTS]
        try:
            with replacing(target) as temporary:
                parquet.write_table(
                    table,
                    temporary,
                    compression="zstd",
                    use_dictionary=[name for name in _FACTS if name not in _NUMBERS],
                    # bfloat16 states have two bytes that are zero: split by byte they cost nothing
                    use_byte_stream_split=[f"{column}.list.element" for column in wide],
                )
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
        for left in target.parent.glob(f".{target.stem}.*.tmp"):  # of a run that was killed while it wrote this shard
            left.unlink(missing_ok=True)

    def read(
        self,
        reads: Iterable[tuple[Site, int]],
        *,
        views: Sequence[str] | None = None,
        readings: Mapping[str, str] | None = None,
    ) -> Checks:
        """Load checks with their states at `reads`, pairs of site and token.

        Args:
            reads: The states to load.
            views: Checks of these views only; all of them by default.
            readings: Answer key -> its reading: these answers only, read so. By default all answers.

        Raises:
            StoreError: A site or token was not collected, there is nothing to read, or an answer was read in more than
                one way and `readings` does not say which is meant.
        """
        reads = list(reads)
        for site, token in reads:
            if site not in self.manifest.sites or token not in self.manifest.tokens:
                there = ", ".join(map(token_text, self.manifest.tokens))
                raise StoreError(
                    f"{self.path} has no states of token {token_text(token)} at {site}; it holds the tokens {there} at "
                    f"{', '.join(map(str, self.manifest.sites))}. Collect them again"
                )
        pa, dataset = require("pyarrow", extra="fit"), require("pyarrow.dataset", extra="fit")
        shards = [str(shard) for shard in self.shards()]
        if not shards:
            raise StoreError(f"{self.path} holds no states yet; run `anydepth collect`")
        names = [column_name(site, token) for site, token in reads]
        only = None if views is None else dataset.field("view").isin(list(views))
        try:
            schema = dataset.dataset(shards[:1], format="parquet").schema
            for name in _STRETCH:  # an older shard has none
                if name not in schema.names:
                    schema = schema.append(pa.field(name, pa.int64()))
            stored = dataset.dataset(shards, schema=schema, format="parquet")
            table = stored.to_table(columns=[*_FACTS, *names], filter=only)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(
                f"{self.path} has a shard that cannot be read ({error}); remove it and collect again"
            ) from error
        size = self.manifest.model.hidden_size
        columns = {
            fact: np.array((table[fact].fill_null(-1) if fact in _STRETCH else table[fact]).to_pylist())
            for fact in _FACTS
        }
        wanted = self._wanted(columns, readings)
        states = np.empty((table.num_rows, len(names), size), np.float32)
        for place, name in enumerate(names):
            begin = 0
            for chunk in table[name].chunks:  # chunk by chunk: only one copy of the states is in memory
                states[begin : begin + len(chunk), place] = chunk.flatten().to_numpy().reshape(-1, size)
                begin += len(chunk)
        checks = Checks(columns, states)
        return checks if wanted.all() else checks.where(wanted)

    def _wanted(self, columns: Mapping[str, np.ndarray], readings: Mapping[str, str] | None) -> np.ndarray:
        """Mask of the checks that belong to `readings`."""
        rows = list(zip(*(columns[name].tolist() for name in _IDENTITY), strict=True))
        if readings is not None:
            return np.array([readings.get(answer) == reading for answer, _, reading in rows], bool)
        seen: dict[tuple[str, str], str] = {}
        for answer, view, reading in sorted(set(rows)):
            if seen.setdefault((answer, view), reading) != reading:
                raise StoreError(
                    f"{self.path} holds the answer {answer} read in two ways: {seen[answer, view]!r} and {reading!r}; "
                    "say with `readings` which is meant, or collect into another folder"
                )
        return np.ones(len(rows), bool)


def column_name(site: Site, token: int) -> str:
    """Column of a read: `state_18_input_layernorm_header3`, or `..._content`, `..._mean25`, `..._mean`."""
    return f"state_{site.block}_{site.module}_" + (token_text(token) if token < 0 else f"header{token}")


def answer_key(messages: Sequence[Mapping[str, Any]], response: str) -> str:
    """Digest of a conversation's text, 16 hex digits."""
    text = json.dumps([[dict(message) for message in messages], response], sort_keys=True, ensure_ascii=False)
    return short_digest(text)


def _read_manifest(path: Path) -> Manifest:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("format_version") != FORMAT_VERSION:
            raise StoreError(
                f"{path} has the format version {record.get('format_version')!r}, this anydepth reads "
                f"{FORMAT_VERSION} (which says how each answer was read); collect again into another folder, or use "
                "the anydepth that wrote it"
            )
        lists = {name: tuple(record[name]) for name in ("header_ids", "header_tokens", "tokens")}
        sites = tuple(Site.parse(site) for site in record["sites"])
        return Manifest(**{**record, **lists, "model": ModelIdentity(**record["model"]), "sites": sites})
    except FileNotFoundError as error:
        raise StoreError(f"there is no store at {path.parent}; make one with `anydepth collect`") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is not the manifest of a store ({error!r}); collect into another folder") from error


def _check_same(path: Path, old: Manifest, new: Manifest) -> None:
    """Refuse to mix states: everything but names and versions must agree."""
    mine, theirs = old.record(), new.record()
    for key in mine:
        one, other = (record[key]["fingerprint"] if key == "model" else record[key] for record in (mine, theirs))
        if key != "versions" and json.dumps(one) != json.dumps(other):
            raise StoreError(f"{path} was collected with {key} {one}, not {other}; collect into another folder")
