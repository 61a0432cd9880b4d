"""`anydepth calibrate`: set a probe's threshold on your own traffic."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
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
from anydepth.cli.shared_options import Loading, grouped
from anydepth.conversations.splits import Text as Words
from anydepth.conversations.splits import copies
from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.errors import AnydepthError, ConfigError, RecordError
from anydepth.fields import LABELS, label_of, text_of
from anydepth.files import check_destination, is_stream
from anydepth.intervals import answers_needed, check_share, percent
from anydepth.policy import Ewma, Policy, Threshold, policy_from, policy_record
from anydepth.probes.artefact.fit_record import answers_seen
from anydepth.probes.artefact.modelcard import ARTEFACT, README, artefact_in, refresh
from anydepth.probes.fitting.calibrate import Trail, peak, recalibrated, threshold_note
from anydepth.probes.fitting.calibrate import calibrate as set_threshold
from anydepth.records import InputLine, Record, read_lines

if TYPE_CHECKING:
    from anydepth.guard import Guard

SHIPPED = "shipped"
MOST_FAILED = 0.1
"""Share of the records that may fail: the rest would no longer be your traffic."""


@grouped
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
        Path | None, opt.output(metavar="OUT", help="Where the new probe goes. Default: NAME.calibrated.safetensors.")
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
    policy: opt.PolicyOption = None,
    interval: opt.Interval = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    *,
    loading: Loading,
) -> None:
    """Set a probe's threshold on your own harmless answers.

    Every answer is read at all its depths. The new threshold is the smallest with which at most --target of the answers
    would be halted; it is written with the evidence into a new probe file. Copies of an answer count once. A record
    that cannot be read is reported and left out (exit code 1); if more than one in ten fails, nothing is written.
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
    needed = answers_needed(target, confidence)  # finds a missing scipy, too, before hours of scanning
    read = _Reading()
    answers = read.usable(benign)
    read.refuse_if_too_many_failed(len(answers))
    distinct = _once(answers)
    if guarantee and len(distinct) < needed:
        raise ConfigError(
            f"--guarantee needs {needed} answers for --target {target:g}, the input has {len(distinct)} that are no "
            "copies of others; give more, or a larger target"
        )
    seen = _seen_by_the_probe(artefact, distinct)
    if guarantee and seen:
        raise ConfigError(f"--guarantee does not hold for these answers: {seen}; leave them out")
    guard = load.open_guard(loading.of(model), opt.GuardOptions(probe=artefact, interval=interval))
    old: Any = guard.detector
    _check_other_probe(out, old)
    for note in filter(None, (_copies_note(answers, distinct), seen, _shared_sources(old.card, distinct))):
        warn(f"note: {note}")
    for answer in track(distinct, description="scan", console=err, transient=True, disable=not err.is_terminal):
        read.answer(guard, answer)
    read.refuse_if_too_many_failed()
    chosen = _policy(policy, guard.policy)
    _check_peaks(chosen, read.trails)
    found = set_threshold(
        chosen,
        read.trails,
        target=target,
        confidence=confidence,
        guarantee=guarantee,
        data=", ".join(f"{path.name} (sha256 {_digest(path)})" for path in benign),
    )
    if (note := threshold_note(found.policy)) is not None:
        warn(f"note: {note}")
    new = recalibrated(
        old,
        found,
        schedule=str(guard.schedule),
        failed=read.failed,
        copies=len(answers) - len(distinct),
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


@dataclass(frozen=True)
class _Answer:
    """A record of a file, and where it stands."""

    file: str
    place: str
    record: Record
    source: str

    @cached_property
    def text(self) -> Words:
        """What to compare it by."""
        return Words.of(self.record.messages, self.record.response)


class _Reading:
    """The checks of the answers so far, and what could not be read."""

    def __init__(self) -> None:
        self.trails: list[Trail] = []
        self.failed = 0
        self.first_failure = ""
        self.notes: set[str] = set()

    def usable(self, files: Iterable[Path]) -> list[_Answer]:
        """The answers that can be scanned; what is wrong with the others needs no model to be seen."""
        found = []
        for path in files:
            for line in read_lines(path):
                place = f"{path.name} line {line.number}"
                try:
                    found.append(_answer(path.name, place, line))
                except RecordError as error:
                    self._fail(place, str(error))
        return found

    def answer(self, guard: "Guard", answer: _Answer) -> None:
        """Read one answer at all its depths, or report what is wrong with it; its text is never shown."""
        try:
            self.trails.append(self._trail(guard, answer))
        except Exception as error:  # whatever one record does, a long run goes on
            self._fail(answer.place, " ".join(str(error).split()) or type(error).__name__)

    def refuse_if_too_many_failed(self, to_come: int = 0) -> None:
        """Raise RecordError if what is left, with the answers still `to_come`, does not stand for the input."""
        total = self.failed + len(self.trails) + to_come
        if total == 0:
            raise RecordError("the input has no records; give harmless answers to calibrate on")
        if self.failed > MOST_FAILED * total:
            raise RecordError(
                f"{self.failed} of {plural(total, 'record')} failed, more than {percent(MOST_FAILED)}, and nothing was "
                f"written; the first: {self.first_failure}"
            )

    def _fail(self, place: str, reason: str) -> None:
        message = f"{place}: {reason}"
        self.failed += 1
        self.first_failure = self.first_failure or message
        err.print(Text(message, style="red"), soft_wrap=True)

    def _trail(self, guard: "Guard", answer: _Answer) -> Trail:
        record = answer.record
        try:
            result = guard.scan(record.messages, record.response)
        except AnydepthError as error:
            raise RecordError(f"id {record.id!r}: {error}") from error
        for note in set(result.notes) - self.notes:
            self.notes.add(note)
            warn(f"note: {note}")
        for check in result.checks:
            if check.error is not None:
                raise RecordError(f"id {record.id!r}: the check at depth {check.depth} failed: {check.error}")
        depths, scores = zip(*((check.depth, check.score) for check in result.checks), strict=True)
        return Trail(f"{answer.file}: {record.id}", answer.source, depths, scores)


def _once(answers: Sequence[_Answer]) -> list[_Answer]:
    """The answers without copies of earlier ones: as evidence, a copy is worth nothing."""
    found = copies([answer.text for answer in answers])
    return [answer for place, answer in enumerate(answers) if place not in found]


def _copies_note(answers: Sequence[_Answer], distinct: Sequence[_Answer]) -> str:
    if len(answers) == len(distinct):
        return ""
    return (
        f"{len(answers) - len(distinct)} of {plural(len(answers), 'record')} are copies of others (the same text but "
        f"for case, space and punctuation, or nearly so); each counts once, which leaves {len(distinct)}"
    )


def _seen_by_the_probe(artefact: Path | None, answers: Sequence[_Answer]) -> str:
    """What is known of answers that the probe was made with, from the record that `anydepth fit` leaves beside it."""
    known = {} if artefact is None else answers_seen(artefact)
    found = []
    for use, keys in known.items():
        if count := sum(answer.text.key in keys for answer in answers):
            found.append(f"{count} of {plural(len(answers), 'answer')} are among those that the probe was {use} on")
    return "; ".join(found)


def _shared_sources(card: ProbeCard, answers: Sequence[_Answer]) -> str:
    """What the card says of the answers' sources, where it knows them."""
    shared = sorted({answer.source for answer in answers} & {str(source.get("name")) for source in card.sources})
    if not shared:
        return ""
    return (
        f"the probe was trained on answers of {', '.join(shared)}, of which there are some here as well; the figures "
        "hold for answers that it has not seen"
    )


def _check_peaks(policy: Policy, trails: Sequence[Trail]) -> None:
    """Refuse scores that are the same for every answer: whatever threshold they give, it means nothing."""
    peaks = {peak(policy, trail.scores) for trail in trails}
    if len(trails) < 2 or len(peaks) > 1:
        return
    (value,) = peaks
    if value == 0 and not isinstance(policy, Threshold | Ewma):
        return  # no answer has so many high scores, or one above the drift
    raise ConfigError(
        f"all {len(trails)} answers peak at {value:g}: the probe tells no answer from another, and no threshold on it "
        "means anything. Look at the probe and at --dtype, or fit a new one with `anydepth fit`"
    )


def _answer(file: str, place: str, line: InputLine) -> _Answer:
    """The harmless answer of a line; RecordError says what is wrong with any other."""
    record = line.record
    if record is None:
        raise RecordError(str(line.error))
    if (label := label_of(record.row, "label", LABELS, None)) == "harmful":
        raise RecordError(f"id {record.id!r} is labelled {label!r}; give harmless answers only")
    return _Answer(file, place, record, text_of(record.row, "source") or file)


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


def _check_other_probe(out: Path, probe: LinearProbe) -> None:
    """Refuse to put the probe beside the model card of another one."""
    if not (out.is_file() and out.name == ARTEFACT and out.with_name(README).is_file()):
        return
    there = LinearProbe.load(out)
    if there.weight.tobytes() != probe.weight.tobytes() or there.bias != probe.bias:
        raise ConfigError(
            f"-o {out.parent} holds another probe, with a model card of its own; give the folder of the probe that is "
            "calibrated, or a name for a file"
        )


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
