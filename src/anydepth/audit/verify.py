"""Verify an audit trail: no token left without a check that covers it, and no record is missing or was changed."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anydepth.audit.chain import Link
from anydepth.audit.reading import Line, read_lines

_ROUNDING = 1e-6
_MOVED = ("missing", "replaced", "changed")
Window = Mapping[str, Any]


@dataclass(slots=True)
class AuditReport:
    """What an audit trail holds.

    Attributes:
        answers: Answers by outcome (`finished`, `cancelled`, …).
        scans: Finished conversations that were scanned.
        gates: Tool calls that were judged before they were run.
        blocked: Answers that were halted.
        released: Tokens that left.
        withheld: Tokens that did not.
        unchecked: Tokens that left before a check, or after one that failed, where the operator allows it.
        unfinished: Answers with windows but without a record: the process ended in between.
        torn: Records that a process was killed over, or that a disk took in part; nothing left with them.
        lost: Records that are not here: where the audit fails open, the disk took none for too long.
        begins: Number of the oldest record; above 1 if older files were dropped, 0 for records without numbers.
        violations: What must not be, one sentence each.
    """

    answers: Counter[str] = field(default_factory=Counter)
    scans: int = 0
    gates: int = 0
    blocked: int = 0
    released: int = 0
    withheld: int = 0
    unchecked: int = 0
    unfinished: int = 0
    torn: int = 0
    lost: int = 0
    begins: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.violations


def verify_audit(path: str | Path) -> AuditReport:
    """Read an audit trail (rotated files included) and check that it accounts for every token.

    Under `hold`, a token is released only after a check at a depth of at least its own, which itself was not a halt.
    The records written before each release must agree with the record of the answer. Each record's number follows the
    last one's, and its digest is that of the line before it.

    Raises:
        AuditError: There is no such trail, or it cannot be read.
    """
    report, chain = AuditReport(), _Chain(Path(path))
    windows: dict[tuple[str, int], list[Window]] = {}
    for line in read_lines(path):
        if line.record is None and not line.whole:
            report.torn += 1  # the next start of the server mends it
            continue
        report.violations += chain.faults(line)
        if line.record is not None:
            try:
                _take(report, line.record, windows)
            except (KeyError, TypeError, AttributeError) as error:
                report.violations.append(f"{_place(line)} lacks what a record has ({error!r})")
    report.begins = chain.first
    _leave_unfinished(report, windows)
    return report


def _leave_unfinished(report: AuditReport, windows: dict[tuple[str, int], list[Window]]) -> None:
    """Count the answers whose process has ended, or goes on; forget their windows, since their ids may come again."""
    for key, left in windows.items():
        report.unfinished += 1
        report.released += sum(window["stop"] - window["start"] for window in left)
        report.violations += [
            f"unfinished answer {key[0]}: tokens {w['start']} to {w['stop']} left without a check that covers them"
            for w in left
            if w["checked_at"] is None and w["release"] == "hold"
        ]
    windows.clear()


class _Chain:
    """Follows the numbers and digests of a trail's records."""

    def __init__(self, path: Path) -> None:
        self.first, self._path = 0, path
        self._last: Link | None = None

    def faults(self, line: Line) -> Iterator[str]:
        """What is wrong with the place of a line in the trail."""
        if line.record is None:
            yield f"{_place(line)} is not a record"
            return
        number = line.record.get("seq")
        if not isinstance(number, int):
            if self._last is not None:  # else an older version wrote it, without numbers
                yield f"{_place(line)} is a record without a number"
            return
        last, self._last = self._last, Link.of(line.data)
        if last is None:
            self.first = number
            moved = line.record.get("reason") in _MOVED
            only = line.file == self._path  # else it is the oldest of several files, and older ones may be dropped
            if number > 1 and moved and only:
                yield (
                    f"records up to {number - 1} are not here: their file was moved, deleted or changed while the "
                    f"server ran; put what was moved back beside it, as {self._path.name}.N with a free number N"
                )
        elif number > last.number + 1:
            yield f"{_place(line)}: {number - 1 - last.number} records are missing before it, from {last.number + 1} on"
        elif number <= last.number:
            yield f"{_place(line)}: record {number} comes after record {last.number}"
        elif line.record.get("prev") != last.digest:
            yield f"{_place(line)}: record {last.number} is not the one that was written before it"


def _place(line: Line) -> str:
    return f"line {line.number} of {line.file.name}"


def _take(report: AuditReport, record: Mapping[str, Any], windows: dict[tuple[str, int], list[Window]]) -> None:
    """Add one record to the report; `windows` has those of answers that have no record yet."""
    kind, key = record["kind"], (record.get("id", ""), record.get("choice", 0))
    if kind == "window":
        windows.setdefault(key, []).append(record)
    elif kind == "answer":
        early = windows.pop(key, [])
        report.violations += [f"answer {key[0]} choice {key[1]}: {each}" for each in _faults(record, early)]
        _count(report, record)
    elif kind == "scan":
        report.scans += 1
    elif kind == "gate":
        report.gates += 1
    elif kind == "file" and record["reason"] == "start":
        _leave_unfinished(report, windows)
    elif kind == "torn":
        report.torn += 1
    elif kind == "lost":
        report.lost += record["records"]


def _count(report: AuditReport, record: Mapping[str, Any]) -> None:
    report.answers[record["outcome"]] += 1
    report.blocked += record["finish_reason"] == "content_filter"
    for window in record["windows"]:
        size = window["stop"] - window["start"]
        if window["state"] == "released":
            report.released += size
            good = [check for check in record["checks"] if "error" not in check]
            report.unchecked += 0 if _covered(window, good) else size
        else:
            report.withheld += size


def _covered(window: Window, checks: list[Mapping[str, Any]]) -> bool:
    """A check at or beyond the window's last token (an end-of-turn token has no depth) was made before it left."""
    last, left = window["stop"] - window["end_tokens"], window["released"]
    return left is not None and any(c["depth"] >= last and c["time"] <= left + _ROUNDING for c in checks)


def _faults(record: Mapping[str, Any], early: list[Window]) -> Iterator[str]:
    position = record["prefill_tokens"]
    for window in record["windows"]:
        if window["start"] != position:
            yield f"the account has a gap: {position} to {window['start']}"
        position = window["stop"]
        if window["state"] == "released" and window["released"] is None:
            yield f"tokens {window['start']} to {window['stop']} left and no time is noted"
        elif record["release"] == "hold" and window["state"] == "released" and not _covered(window, record["checks"]):
            yield f"tokens {window['start']} to {window['stop']} left without a check that covers them"
        if window["end_tokens"] not in (0, 1) or (window["end_tokens"] and window is not record["windows"][-1]):
            yield f"an end of turn inside the answer, at {window['stop']}"
    generated = record["generated_tokens"]
    if generated is not None and position != record["prefill_tokens"] + generated:
        yield f"{generated} tokens were generated, the account ends at {position - record['prefill_tokens']}"
    yield from _disagreements(record, early)
    yield from _failed_checks(record)


def _disagreements(record: Mapping[str, Any], early: list[Window]) -> Iterator[str]:
    released = [w for w in record["windows"] if w["state"] == "released"]
    if early and released and early[-1]["stop"] != released[-1]["stop"]:
        yield f"the last release noted is {early[-1]['stop']}, the record says {released[-1]['stop']}"
    if early and not released:
        yield f"{early[-1]['stop']} tokens were noted as released, the record says none"


def _failed_checks(record: Mapping[str, Any]) -> Iterator[str]:
    """Under `closed`, nothing leaves after a check that failed."""
    failed = [check["time"] for check in record["checks"] if "error" in check]
    if failed and record["on_error"] == "closed" and record["release"] == "hold":
        late = [w for w in record["windows"] if w["state"] == "released" and (w["released"] or 0) > failed[0]]
        if late:
            yield f"tokens {late[0]['start']} to {late[0]['stop']} left after a check that failed"
