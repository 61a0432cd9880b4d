"""`anydepth scan`: the risk over depth of finished answers."""

import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from anydepth.cli import load
from anydepth.cli import options as opt
from anydepth.cli.manifest import asked_settings, loaded_settings
from anydepth.cli.output import Bars, err, plural, warn
from anydepth.cli.shared_options import Loading, grouped
from anydepth.errors import ConfigError
from anydepth.files import check_destination, is_stream
from anydepth.journal import Journal, digest_of
from anydepth.locks import hold
from anydepth.probes.states.store import answer_key
from anydepth.records import InputLine, Record, count_lines, read_lines, scan_record
from anydepth.types import ScanResult

if TYPE_CHECKING:
    from anydepth.guard import Guard

_AT_ONCE = 32
"""Answers that vLLM is given at once; each is a request for every depth."""


@grouped
def scan(
    model: opt.Model,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help='JSONL (or .jsonl.gz) of {"id", "prompt" or "messages", "response"}, one a line; `-`: standard input.',
        ),
    ],
    output: Annotated[
        Path, opt.output(metavar="OUT", help="Where the results go; ids that are there are skipped. `-`: stdout.")
    ],
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Look at the first N records of the file only.")
    ] = None,
    *,
    guarding: opt.Guarding,
    on_error: opt.OnErrorOption = "closed",
    engine: Annotated[
        opt.EngineName, typer.Option("--engine", help="What runs the model: Transformers, or vLLM with many at once.")
    ] = "transformers",
    engine_arg: opt.EngineArgs = None,
    loading: Loading,
) -> None:
    """Score finished answers at every scheduled depth.

    One record out per record in: {"id", "checks": [{"depth", "score"}, …], "verdict": {"halt", "depth", "score"}}, and
    digests of its text and of the settings. Run the same command again to go on after an interruption. Unusable lines
    are reported on standard error with their number and the rest goes on; the exit code is then 1.
    """
    file, output = _opened(file, "/dev/stdin"), _opened(output, "/dev/stdout")
    total = None if is_stream(file) else count_lines(file)
    check_destination(output, "-o")
    if total is not None and output.exists() and output.samefile(file):
        raise ConfigError(f"-o {output} is the input file; give another file")
    limit = None if limit is None else min(limit, sys.maxsize)
    options = guarding.options(release="hold", on_error=on_error)
    loaded = loading.of(model, engine, tuple(engine_arg or ()))
    with (
        nullcontext() if is_stream(output) else hold(output),
        Journal(output, keep=lambda row: row.get("text_digest")) as journal,
    ):
        run = _begun(journal, loaded, options)
        with Bars() as bars:
            done, total = 0, None if total is None else min(total, limit or total)
            lines = islice(read_lines(file), limit)
            at_once = _AT_ONCE if engine == "vllm" else 1
            while batch := list(islice(lines, at_once)):
                run.lines(batch)
                bars("scan", done := done + len(batch), total)
    err.print(Text(run.summary()), soft_wrap=True)
    if run.failed:
        raise typer.Exit(1)


def _opened(path: Path, stream: str) -> Path:
    """The path, or that of what the shell has opened if it is `-`."""
    return Path(stream) if str(path) == "-" else path


def _begun(journal: Journal, model: opt.ModelOptions, options: opt.GuardOptions) -> "_Run":
    """Load the guard for a run that goes on where the records end; one with other settings is refused."""
    asked = asked_settings(model, options)
    journal.check(asked)
    if journal.rows:
        err.print(f"{journal.path} holds {plural(len(journal.rows), 'record')}, going on", markup=False, soft_wrap=True)
    guard = load.open_guard(model, options, options.external_options())
    settings = {**asked, **loaded_settings(guard)}
    journal.begin(settings)
    return _Run(guard, journal, digest_of(settings))


class _Run:
    """The tally of one scan."""

    def __init__(self, guard: "Guard", journal: Journal, settings: str) -> None:
        self.guard = guard
        self.journal = journal
        self.settings = settings
        self.scanned = self.skipped = self.halted = self.failed = 0
        self.notes: set[str] = set()

    def lines(self, lines: Sequence[InputLine]) -> None:
        """Scan the records of some lines in one batch, or report what is wrong with them."""
        new: list[tuple[int, Record]] = []
        for line in lines:
            if line.record is None:
                self._report(line.number, str(line.error))
            elif line.record.id in self.journal.rows:
                self._skip(line.number, line.record)
            else:
                new.append((line.number, line.record))
        for (number, record), found in zip(new, self._scanned([record for _, record in new]), strict=True):
            if isinstance(found, Exception):  # its id is tried again next time
                self._report(number, f"id {record.id!r}: {found or type(found).__name__}")
            else:
                self._note(number, record, found)

    def _skip(self, number: int, record: Record) -> None:
        if self.journal.rows[record.id] == answer_key(record.messages, record.response):
            self.skipped += 1
            return
        self._report(
            number,
            f"id {record.id!r}: its prompt or answer has changed since it was scanned; give the record another id, or "
            "another -o",
        )

    def _scanned(self, records: Sequence[Record]) -> list[ScanResult | Exception]:
        """Scan in one batch; if that fails, one by one: whatever one record does, the others go on."""
        try:
            return [*self.guard.scan_many([(record.messages, record.response) for record in records])]
        except Exception as error:
            return [error] if len(records) == 1 else [found for each in records for found in self._scanned([each])]

    def _note(self, number: int, record: Record, result: ScanResult) -> None:
        text = answer_key(record.messages, record.response)
        self.journal.write(record.id, scan_record(record.id, result, text=text, settings=self.settings))
        self.scanned += 1
        self.halted += result.verdict.halt
        for note in set(result.notes) - self.notes:
            self.notes.add(note)
            warn(f"note: {note}")
        broken = [check for check in result.checks if check.error is not None or math.isnan(check.score)]
        if broken:
            reason = broken[0].error or "the score is not a number"
            where = plural(len(broken), "check")
            self._report(number, f"id {record.id!r}: {where} failed, first at depth {broken[0].depth}: {reason}")

    def summary(self) -> str:
        """Return the tally as one line."""
        parts = [f"{plural(self.scanned, 'answer')} scanned", f"{self.halted} would be halted"]
        if self.skipped:
            parts.append(f"{self.skipped} skipped (done before)")
        if self.failed:
            parts.append(f"{plural(self.failed, 'line')} failed")
        return ", ".join(parts) + f"; results in {self.journal.path}"

    def _report(self, number: int, message: str) -> None:
        self.failed += 1
        err.print(Text(f"line {number}: {' '.join(message.split())}", style="red"), soft_wrap=True)
