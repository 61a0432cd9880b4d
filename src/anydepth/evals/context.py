"""What a suite is given to work with."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from anydepth.backends.batch import batches, write_batch
from anydepth.config import GuardConfig
from anydepth.conversations.corpora import load
from anydepth.conversations.dataset import Conversation
from anydepth.conversations.splits import Text, contradicted, distinct
from anydepth.detectors import LinearProbe, find_shipped
from anydepth.errors import ConfigError, StoreError
from anydepth.evals.eval_options import EvalOptions
from anydepth.evals.judges.judge import Judge, Judged, Judgement
from anydepth.evals.judges.open import open_judge
from anydepth.evals.suite_options import read_setting
from anydepth.evals.transcript import Transcript
from anydepth.journal import Journal
from anydepth.probes.recipe.pairs import half
from anydepth.templates.template import Prompt
from anydepth.types import Progress

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend

Item = TypeVar("Item")

TARGET = 0.01
"""False alarms that a threshold is usually set for."""


@dataclass
class Context:
    """The model, the probe, the data and the files of one suite's run.

    Attributes:
        suite: Name of the suite.
        backend: The model.
        options: Data, seed, sizes, arms and settings of the suites.
        folder: The run's folder.
        judge_spec: Which judge decides; see `open_judge`.
        given_probe: The probe to use; by default the one shipped for the model.
        config: Schedule and policy of the guard; the policy gives way to a detector's calibrated one.
        told: Called with the progress.
        on_table: Called with the name, the number of rows and the digest of each table, before its rows are used.
    """

    suite: str
    backend: "TransformersBackend"
    options: EvalOptions
    folder: Path
    judge_spec: str = "text"
    given_probe: LinearProbe | None = None
    config: GuardConfig = field(default_factory=GuardConfig)
    told: Progress = lambda what, done, total, tokens=0: None
    on_table: Callable[[str, dict[str, Any]], None] = lambda name, facts: None
    _kept: dict[tuple[str, ...], set[str]] = field(default_factory=dict, repr=False)

    # -- the model and its probe ---------------------------------------------------------------------------------------

    @cached_property
    def probe(self) -> LinearProbe:
        """The probe, bound to the model; ConfigError with the remedy if there is none."""
        probe = self.given_probe or find_shipped(self.backend)
        if probe is None:
            raise ConfigError(
                f"suite {self.suite} needs a probe and none is shipped for {self.backend.identity.name}; "
                "give --probe (fit one with `anydepth fit`)"
            )
        probe.bind(self.backend)
        return probe

    @property
    def target(self) -> float:
        """The false-alarm rate that the probe's threshold was set for; the usual one where nothing says so."""
        probe = self.given_probe or find_shipped(self.backend)
        return TARGET if probe is None else float(probe.card.calibration.get("target", TARGET))

    def prompt(self, conversation: Conversation, prefill: str | None = None) -> Prompt:
        """The prompt of a conversation; `prefill` is the beginning of the answer that is forced."""
        return self.backend.template.prompt(list(conversation.messages), prefill=prefill)

    # -- data ----------------------------------------------------------------------------------------------------------

    def table(
        self, name: str, *, label: str | None = None, limit: int | None = None, unseen: bool = False
    ) -> list[Conversation]:
        """Rows of a named table, in an order drawn with the run's seed; with a `limit`, other prompts before others.

        Of several copies of an answer there is one (`anydepth.conversations.splits.distinct`): it counts once in every
        figure. Answers that occur with both labels are left out.

        Args:
            name: Name in the data folder, or of a corpus on the hub.
            label: Keep only rows with this label.
            limit: Keep this many, of different prompts as long as there are any.
            unseen: Keep only prompts of the half that no choice of the shipped probes was made on.

        Raises:
            ConfigError: The table is not there or has no such rows; the message names the suite.
        """
        try:
            rows = load(name, data=self.options.data_dir)
        except ConfigError as error:
            raise ConfigError(f"suite {self.suite} needs the table {name}: {error}") from error
        self.on_table(name, {"rows": len(rows), "sha256": _digest_of_rows(rows), "of": "whole records"})
        both = contradicted(rows)
        rows = [row for row in rows if not both or Text.of(row.messages, row.response).key not in both]
        found = [row for row in rows if label is None or row.label == label]
        if unseen and found:
            mask = half([row.prompt_key for row in found], 1)
            found = [row for row, kept in zip(found, mask, strict=True) if kept]
        found.sort(key=lambda row: self.digest(row.id))
        found = self._distinct(name, found)
        if limit is not None:
            found = fresh_first(found, lambda row: row.prompt_key)[:limit]
        if not found:
            raise ConfigError(f"suite {self.suite}: the table {name} has no rows labelled {label}; give another table")
        return found

    def _distinct(self, name: str, rows: list[Conversation]) -> list[Conversation]:
        """The rows without copies; comparing those of a table takes seconds, so that it is done once for each use."""
        use = (name, *(row.id for row in rows))
        if use not in self._kept:
            self._kept[use] = {row.id for row in distinct(rows).kept}
        return [row for row in rows if row.id in self._kept[use]]

    def count(self, whole: int, quick: int) -> int:
        """How many answers to take: the user's limit, or the suite's own number."""
        return self.options.limit or (quick if self.options.quick else whole)

    def digest(self, *parts: object) -> int:
        """A number drawn with the run's seed, the same in every run."""
        content = "\0".join(map(str, (self.options.seed, *parts)))
        return int.from_bytes(hashlib.sha256(content.encode()).digest()[:4])

    def setting(self, name: str, default: str) -> str:
        """The user's `--set SUITE.NAME=VALUE`, or the default."""
        return self.options.settings.get(f"{self.suite}.{name}", default)

    def value(self, name: str, whole: object, quick: object) -> Any:
        """The user's `--set SUITE.NAME=VALUE` or the suite's own value, read; ConfigError says what it may be."""
        return read_setting(f"{self.suite}.{name}", self.setting(name, str(quick if self.options.quick else whole)))

    def number(self, name: str, whole: int, quick: int) -> int:
        """The user's `--set SUITE.NAME=N`, or the suite's own number; ConfigError unless it is whole and at least 1."""
        return self.value(name, whole, quick)

    def samples(self, name: str, whole: int, quick: int) -> int:
        """A number of samples, which `--limit` bounds; otherwise see `number`."""
        found = self.number(name, whole, quick)
        return min(found, self.options.limit or found)

    # -- records -------------------------------------------------------------------------------------------------------

    @cached_property
    def records(self) -> "Records":
        """The suite's records, ids and numbers only; `records.write(id, {...})`, `id in records`, `records.rows`."""
        return Records(self.folder / "records" / f"{self.suite}.jsonl", self._settings())

    @cached_property
    def texts(self) -> Journal:
        """What models wrote; private, never in a report."""
        return Journal(self.folder / "texts" / f"{self.suite}.jsonl", self._settings())

    def record(self, key: str, make: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """The record `key`, made by `make` if it is not there yet."""
        if key not in self.records:
            self.records.write(key, {"id": key, **make()})
        return self.records.rows[key]

    def fill(
        self,
        what: str,
        together: Iterable[Mapping[str, Item]],
        make: Callable[[Mapping[str, Item]], Iterable[Mapping[str, Any]]],
        journal: Journal | None = None,
    ) -> None:
        """Make the records that are missing, in the same batches in every run: padding may move a score's last digits.

        Args:
            what: What progress calls it.
            together: The batches, id -> what the record is made of.
            make: The records of a whole batch, in its order; called for batches of which a record is missing.
            journal: Where they go; by default the suite's records.
        """
        kept, wanted = journal or self.records, list(together)
        done, total = 0, sum(map(len, wanted))
        for batch in wanted:
            if any(key not in kept for key in batch):
                for key, facts in zip(batch, make(batch), strict=True):
                    if key not in kept:
                        kept.write(key, {"id": key, **facts})
            done += len(batch)
            self.told(what, done, total)

    def close(self) -> None:
        """Close the files."""
        for name in ("records", "texts"):
            if name in self.__dict__:
                self.__dict__[name].__exit__(None, None, None)

    def _settings(self) -> dict[str, Any]:
        return {
            "suite": self.suite,
            "fingerprint": self.backend.identity.fingerprint,
            "template_digest": self.backend.template.digest,
            "dtype": str(self.backend.model.dtype),
            "probe": probe_digest(self.given_probe or find_shipped(self.backend)),
            "guard": repr(self.config),
            "judge": self.judge_spec,
            **self.options.record(),
        }

    # -- answers -------------------------------------------------------------------------------------------------------

    def write(
        self,
        prompts: Mapping[str, Prompt],
        max_new_tokens: int,
        *,
        sampling: Mapping[str, Any] | None = None,
        backend: "TransformersBackend | None" = None,
    ) -> dict[str, Transcript]:
        """What the bare model writes after each prompt, greedily unless `sampling` says otherwise; kept in `texts`.

        `backend` is another model than the one under test; its answers need ids of their own.
        """
        model = backend or self.backend
        options = {"do_sample": False} if sampling is None else dict(sampling)

        def make(batch: Mapping[str, Prompt]) -> Iterator[dict[str, Any]]:
            seed = self.digest(max_new_tokens, json.dumps(options, sort_keys=True, default=str), *batch)
            written = write_batch(
                model, list(batch.values()), max_new_tokens=max_new_tokens, seed=seed, sampling=options
            )
            for each in written:
                facts = {"ids": list(each.token_ids), "finish": each.finish_reason, "end": each.end_tokens}
                yield {**facts, "text": model.decode_text(each.token_ids)}

        together = batches(list(prompts), lambda key: prompts[key], max_new_tokens, str)
        self.fill("write", [{key: prompts[key] for key in batch} for batch in together], make, self.texts)
        rows = {key: self.texts.rows[key] for key in prompts}
        return {
            key: Transcript(key, prompts[key], tuple(row["ids"]), row["finish"], row["end"])
            for key, row in rows.items()
        }

    def text(self, key: str) -> str:
        """The text that was written for `key`."""
        return self.texts.rows[key]["text"]

    # -- judging -------------------------------------------------------------------------------------------------------

    @cached_property
    def judge(self) -> Judge:
        """The judge of this run."""
        return open_judge(
            self.judge_spec, tables=lambda name: self.table(name), folder=self.folder, seed=self.options.seed
        )

    def answered(self, request: str, key: str, prompt: Prompt) -> Judged:
        """What was written for `key`, for the judge; the prefill of `prompt` is the part of it that was forced."""
        return Judged(request, self.text(key), self.backend.decode_text(prompt.ids[prompt.start :]))

    def judged(self, items: Mapping[str, Judged]) -> dict[str, Judgement]:
        """The judgement of each item."""
        found = self.judge.judge(list(items.values()))
        return dict(zip(items, found, strict=True))


class Records(Journal):
    """The records of a suite: finite numbers only, since nothing else is JSON."""

    def write(self, key: str | int, row: Mapping[str, Any]) -> None:
        """Append one record; StoreError names it if it holds a number that is not finite."""
        try:
            json.dumps(row, allow_nan=False)
        except ValueError as error:
            raise StoreError(
                f"record {key!r} of {self.path.name} has a number that is not finite, so the states or scores that it "
                "is made of are not; measure with another --dtype, at other layers or depths"
            ) from error
        super().write(key, row)


def fresh_first(items: Sequence[Item], key: Callable[[Item], str]) -> list[Item]:
    """The items in their order, but the first one of each key before those whose key has come already."""
    first = {key(item): place for place, item in reversed(list(enumerate(items)))}
    order = sorted(range(len(items)), key=lambda place: first[key(items[place])] != place)
    return [items[place] for place in order]


def probe_digest(probe: LinearProbe | None) -> str | None:
    """Digest of all of a probe that decides a score or a halt, 16 hex digits; None of no probe."""
    if probe is None:
        return None
    decides = [list(map(str, probe.reads)), float(probe.bias), dict(probe.card.policy or {})]
    content = json.dumps(decides, sort_keys=True, default=str).encode() + probe.numbers
    return hashlib.sha256(content).hexdigest()[:16]


def _digest_of_rows(rows: Iterable[Conversation]) -> str:
    """Digest of everything that a table says, whatever the order of its rows."""
    lines = sorted(json.dumps(asdict(row), sort_keys=True) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
