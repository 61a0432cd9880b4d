"""`anydepth calibrate`: set a probe's threshold on your own traffic."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.text import Text

from anydepth.cli import load
from anydepth.cli import options as opt
from anydepth.cli.evidence import evidence_rows, evidence_tables, fact_table, policy_text
from anydepth.cli.output import err, plural, warn, write_json
from anydepth.detectors import ProbeCard
from anydepth.errors import AnydepthError, ConfigError, RecordError
from anydepth.fields import LABELS, label_of, text_of
from anydepth.files import check_destination, is_stream
from anydepth.policy import Policy, policy_from, policy_record
from anydepth.probes.calibrate import Trail, recalibrated
from anydepth.probes.calibrate import calibrate as set_threshold
from anydepth.probes.intervals import answers_needed, check_share, percent
from anydepth.probes.modelcard import artefact_in, refresh
from anydepth.records import Line, count_lines, read_lines

if TYPE_CHECKING:
    from anydepth.guard import Guard

SHIPPED = "shipped"
HARMLESS = ("benign", "safe", "harmless")
MOST_FAILED = 0.1
"""Share of the records that may fail: the rest would no longer be your traffic."""


def calibrate(
    probe: Annotated[
        str, typer.Argument(metavar="PROBE", help="A probe file or folder, or `shipped` for the one of this package.")
    ],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="Hugging Face id or folder of its model.")],
    benign: Annotated[
        list[Path],
        typer.Option(
            "--benign",
            metavar="FILE",
            help='Harmless answers: JSONL (or .jsonl.gz) of {"id", "prompt" or "messages", "response"}, with "source" '
            "if you like. Give it again for more files.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="OUT", help="Where the new probe goes. Default: NAME.calibrated.safetensors."
        ),
    ] = None,
    target: Annotated[
        float, typer.Option("--target", metavar="RATE", help="Share of harmless answers that may be halted.")
    ] = 0.005,
    guarantee: Annotated[
        bool, typer.Option("--guarantee", help="Keep the upper bound of that share, not the share seen, to --target.")
    ] = False,
    confidence: Annotated[
        float, typer.Option("--confidence", metavar="SHARE", help="Confidence of the bound and the interval.")
    ] = 0.95,
    policy: Annotated[
        opt.PolicyName | None,
        typer.Option("--policy", help="How scores become a halt. Default: the probe's own policy."),
    ] = None,
    interval: opt.Interval = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    adapter: opt.Adapter = None,
    dtype: opt.Dtype = "auto",
    device: opt.Device = None,
    revision: opt.Revision = None,
    template_kwarg: opt.TemplateKwargs = None,
) -> None:
    """Set a probe's threshold on your own harmless answers.

    Every answer is read at all its depths. The new threshold is the smallest with which at most --target of the answers
    would be halted; it is written with the evidence into a new probe file. A record that cannot be read is reported and
    left out (exit code 1); if more than one in ten fails, nothing is written.
    """
    check_share("--target", target)
    check_share("--confidence", confidence)
    for path in benign:
        if is_stream(path):
            raise ConfigError(f"--benign {path} is a pipe or a device, which cannot be read twice; write it to a file")
    artefact = None if probe == SHIPPED else artefact_in(probe)
    if artefact is not None and not artefact.is_file():
        raise ConfigError(f"there is no probe at {artefact}; give a probe file or folder, or the word {SHIPPED!r}")
    out = _destination(output, Path(model).name if artefact is None else Path(probe))
    total = sum(map(count_lines, benign))
    needed = answers_needed(target, confidence)  # finds a missing scipy, too, before hours of scanning
    if guarantee and total < needed:
        raise ConfigError(
            f"--guarantee needs {needed} answers for --target {target:g}, the input has {total}; give more, or a "
            "larger target"
        )
    guard = load.open_guard(
        opt.ModelOptions(
            model, adapter, dtype, device, revision, template_kwargs=opt.template_variables(template_kwarg)
        ),
        opt.GuardOptions(probe=artefact, interval=interval),
    )
    read = _Reading(guard)
    for answer in track(
        _answers(benign), description="scan", total=total, console=err, transient=True, disable=not err.is_terminal
    ):
        read.answer(answer)
    read.refuse_if_too_many_failed()
    found = set_threshold(
        _policy(policy, guard.policy),
        read.trails,
        target=target,
        confidence=confidence,
        guarantee=guarantee,
        data=", ".join(f"{path.name} (sha256 {_digest(path)})" for path in benign),
    )
    old: Any = guard.detector
    new = recalibrated(
        old,
        found,
        schedule=str(guard.schedule),
        failed=read.failed,
        replaces=None if old.card.policy is None else dict(old.card.policy),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    new.save(out)
    refresh(out, new)
    if as_json:
        write_json({"probe": str(out), "policy": new.card.policy, "calibration": new.card.calibration})
    else:
        _print(Console(highlight=False), out, old.card.policy, new.card)
    if read.failed:
        err.print(Text(f"{plural(read.failed, 'record')} failed and were left out", style="red"), soft_wrap=True)
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Answer:
    """One line of a file, with what the file says beside prompt and answer."""

    file: str
    line: Line
    source: str
    label: str | None


class _Reading:
    """The checks of the answers so far."""

    def __init__(self, guard: "Guard") -> None:
        self.guard = guard
        self.trails: list[Trail] = []
        self.failed = 0
        self.first_failure = ""
        self.notes: set[str] = set()

    def answer(self, answer: _Answer) -> None:
        """Read one answer at all its depths, or report what is wrong with it; its text is never shown."""
        try:
            self.trails.append(self._trail(answer))
        except Exception as error:  # whatever one record does, a long run goes on
            reason = " ".join(str(error).split()) or type(error).__name__
            message = f"{answer.file} line {answer.line.number}: {reason}"
            self.failed += 1
            self.first_failure = self.first_failure or message
            err.print(Text(message, style="red"), soft_wrap=True)

    def refuse_if_too_many_failed(self) -> None:
        """Raise RecordError if what is left does not stand for the input."""
        total = self.failed + len(self.trails)
        if total == 0:
            raise RecordError("the input has no records; give harmless answers to calibrate on")
        if self.failed > MOST_FAILED * total:
            raise RecordError(
                f"{self.failed} of {plural(total, 'record')} failed, more than {percent(MOST_FAILED)}, and nothing was "
                f"written; the first: {self.first_failure}"
            )

    def _trail(self, answer: _Answer) -> Trail:
        record = answer.line.record
        if record is None:
            raise RecordError(str(answer.line.error))
        if answer.label is not None and answer.label.lower() not in HARMLESS:
            raise RecordError(f"id {record.id!r} is labelled {answer.label!r}; give harmless answers only")
        try:
            result = self.guard.scan(record.messages, record.response)
        except AnydepthError as error:
            raise RecordError(f"id {record.id!r}: {error}") from error
        for note in set(result.notes) - self.notes:
            self.notes.add(note)
            warn(f"note: {note}")
        for check in result.checks:
            if check.error is not None:
                raise RecordError(f"id {record.id!r}: the check at depth {check.depth} failed: {check.error}")
        depths, scores = zip(*((check.depth, check.score) for check in result.checks), strict=True)
        return Trail(str(record.id), answer.source, depths, scores)


def _answers(files: list[Path]) -> Iterator[_Answer]:
    for path in files:
        for line in read_lines(path):
            yield _answer(path.name, line)


def _answer(file: str, line: Line) -> _Answer:
    """The line with its source and label; one whose label cannot be read has an error in the place of its record."""
    row = {} if line.record is None else line.record.row
    try:
        return _Answer(file, line, text_of(row, "source") or file, label_of(row, "label", LABELS, None))
    except RecordError as error:
        return _Answer(file, replace(line, record=None, error=str(error)), file, None)


def _destination(output: Path | None, name: str | Path) -> Path:
    """Where the new probe goes; ConfigError if that cannot be, before a model is loaded."""
    if output is None:
        stem = str(name).removesuffix(".safetensors").rstrip("/")
        out = Path(f"{stem}.calibrated.safetensors")
        if out.exists():
            raise ConfigError(f"{out} is there already; say `-o {out}` to overwrite it, or name another file")
    else:
        out = artefact_in(output)
    if out.suffix != ".safetensors":
        raise ConfigError(f"-o {output} is neither a folder nor a name that ends in .safetensors; give one of these")
    if is_stream(out):
        raise ConfigError(f"-o {out} is a pipe or a device; give the name of a file")
    check_destination(out, "-o")
    return out


def _policy(name: str | None, own: Policy) -> Policy:
    """The policy that is asked for; of the probe's own kind, with its own options."""
    return own if name is None or policy_record(own)["name"] == name else policy_from({"name": name})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _print(console: Console, out: Path, before: Mapping[str, Any] | None, card: ProbeCard) -> None:
    rows = [("policy", policy_text(card.policy)), ("before", policy_text(before)), *evidence_rows(card.calibration)]
    console.print(fact_table([*rows, ("written to", out)]))
    for table in evidence_tables(card.calibration):
        console.print(table)
