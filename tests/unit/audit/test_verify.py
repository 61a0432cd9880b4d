"""What an audit trail proves, and what the verifier finds wrong with one."""

import copy
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from anydepth.audit.file import JsonlFile
from anydepth.audit.reading import read_records
from anydepth.audit.trail import AuditError
from anydepth.audit.verify import verify_audit

ANSWER: dict[str, Any] = {
    "kind": "answer", "id": "a", "choice": 0, "time": 5.0, "release": "hold", "on_error": "closed",
    "outcome": "finished", "finish_reason": "stop", "prefill_tokens": 3, "generated_tokens": 10,
    "checks": [{"depth": depth, "score": 0.1, "time": float(i)} for i, depth in enumerate((0, 3, 7, 12))],
    "windows": [
        {"start": 3, "stop": 7, "end_tokens": 0, "checked_at": 7, "state": "released", "released": 2.5},
        {"start": 7, "stop": 13, "end_tokens": 1, "checked_at": 12, "state": "released", "released": 3.5},
    ],
}  # fmt: skip


def faults(tmp_path: Path, *records: dict[str, Any]) -> list[str]:
    path = tmp_path / "audit.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return verify_audit(path).violations


def changed(**changes: Any) -> dict[str, Any]:
    record = copy.deepcopy(ANSWER)
    for place, value in changes.items():
        *path, last = place.split("__")
        target: Any = record
        for part in path:
            target = target[int(part) if part.isdecimal() else part]
        target[int(last) if last.isdecimal() else last] = value
    return record


def test_a_good_answer(tmp_path):
    assert faults(tmp_path, ANSWER) == []
    report = verify_audit(tmp_path / "audit.jsonl")
    assert (report.released, report.withheld, report.unchecked, report.blocked) == (10, 0, 0, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"windows__1__stop": 14, "generated_tokens": 11}, "without a check that covers"),
        ({"windows__1__end_tokens": 0}, "without a check that covers"),
        ({"windows__0__released": 1.5}, "without a check that covers"),
        ({"windows__0__released": None}, "no time is noted"),
        ({"windows__1__start": 8}, "a gap: 7 to 8"),
        ({"windows__0__start": 0}, "a gap: 3 to 0"),
        ({"generated_tokens": 12}, "12 tokens were generated, the account ends at 10"),
        ({"windows__0__end_tokens": 1}, "an end of turn inside"),
        ({"checks__2__error": "CheckError"}, "after a check that failed"),
    ],
)
def test_what_must_not_be_is_found(tmp_path, changes, words):
    assert any(words in fault for fault in faults(tmp_path, changed(**changes)))


def test_early_records_must_agree(tmp_path):
    early = {"kind": "window", "id": "a", "choice": 0, "time": 4.0, "release": "hold", "checked_at": 7, "start": 3}
    assert faults(tmp_path, {**early, "stop": 13}, ANSWER) == []
    assert "the record says 13" in faults(tmp_path, {**early, "stop": 7}, ANSWER)[0]
    assert faults(tmp_path, {**early, "stop": 7}) == []
    assert verify_audit(tmp_path / "audit.jsonl").unfinished == 1
    assert "left without a check" in faults(tmp_path, {**early, "stop": 7, "checked_at": None})[0]


def test_eager_may_release_first_and_is_counted(tmp_path):
    assert faults(tmp_path, changed(release="eager", windows__0__released=0.5)) == []
    assert verify_audit(tmp_path / "audit.jsonl").unchecked == 4


def trail(path: Path, *notes: str, keep: int = 3, max_bytes: int = 10_000) -> None:
    """Write a trail of notes; each opening of the file is a record, too."""
    file = JsonlFile(path, max_bytes, keep)
    for note in notes:
        file.write({"kind": "note", "text": note})
    file.close()


def edited(path: Path, edit: Any) -> list[str]:
    path.write_text("".join(edit(path.read_text().splitlines(keepends=True))))
    return verify_audit(path).violations


def test_records_are_tied_to_one_another(tmp_path):
    path = tmp_path / "trail"
    trail(path, "a", "b", "c")
    trail(path, "d")
    records = list(read_records(path))
    assert [record["seq"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record.get("text", record.get("reason")) for record in records] == ["start", "a", "b", "c", "start", "d"]
    report = verify_audit(path)
    assert report.ok and report.begins == 1


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda lines: [*lines[:2], *lines[3:]], "line 3 of trail: 1 records are missing before it, from 3 on"),
        (lambda lines: [line.replace("b", "x", 1) if '"b"' in line else line for line in lines], "record 3 is not the"),
        (lambda lines: [*lines[:2], lines[3], lines[2]], "record 3 comes after record 4"),
        (lambda lines: [*lines[:2], '{"kind": "note"}\n', *lines[2:]], "line 3 of trail is a record without a number"),
        (lambda lines: [*lines[:2], "half a li\n", *lines[2:]], "line 3 of trail is not a record"),
        (
            lambda lines: [*lines, '{"kind": "answer", "seq": 5}\n'],
            "lacks what a record has (KeyError(",
        ),
    ],
)
def test_a_trail_that_was_tampered_with(tmp_path, edit, words):
    path = tmp_path / "trail"
    trail(path, "a", "b", "c")
    assert any(words in fault for fault in edited(path, edit)), verify_audit(path).violations


def test_files_that_were_dropped_are_told_and_files_that_are_missing_are_a_violation(tmp_path):
    path = tmp_path / "trail"
    trail(path, *("x" * 2000 for _ in range(20)), max_bytes=4096)
    report = verify_audit(path)
    assert report.ok and report.begins > 1
    (tmp_path / "trail.1").unlink()
    assert any("are missing before it" in each for each in verify_audit(path).violations)


def test_a_trail_of_an_older_version_goes_on(tmp_path):
    path = tmp_path / "trail"
    path.write_text(json.dumps(ANSWER) + "\n")
    trail(path, "a")
    report = verify_audit(path)
    assert report.ok and report.answers == {"finished": 1} and report.begins == 1


def test_half_a_line_at_the_end_is_told_and_not_raised(tmp_path):
    path = tmp_path / "trail"
    trail(path, "a")
    with path.open("ab") as file:
        file.write(b'{"kind": "answer", "id": "caf\xc3')
    report = verify_audit(path)
    assert report.ok and report.torn == 1


@pytest.mark.parametrize("rotations", [1, 3])
@pytest.mark.parametrize("before", [0, 1, 2, 4])
def test_files_that_a_server_rotates_meanwhile_are_read_once(tmp_path, monkeypatch, rotations, before):
    """After `before` files of it were opened and before the next one is."""
    path = tmp_path / "trail"
    trail(path, *("x" * 2000 for _ in range(6)), max_bytes=4096, keep=50)
    file = JsonlFile(path, 4096, 50)
    real, opening = Path.open, iter(range(100))

    def opened(self: Path, *args: Any, **options: Any) -> Any:
        if next(opening) == before:
            for _ in range(rotations):
                file.write({"kind": "note", "text": "x" * 3000})
        return real(self, *args, **options)

    monkeypatch.setattr(Path, "open", opened)
    report = verify_audit(path)
    monkeypatch.undo()
    assert report.ok and report.begins == 1, report.violations
    file.close()


def test_what_is_no_trail_is_named(tmp_path):
    with pytest.raises(AuditError, match="there is no audit trail at"):
        verify_audit(tmp_path / "none")
    with pytest.raises(AuditError, match="Is a directory"):
        verify_audit(tmp_path)
    database = sqlite3.connect(tmp_path / "old.sqlite")
    database.execute("CREATE TABLE records (record TEXT)")
    database.close()
    with pytest.raises(AuditError, match=r"sqlite3 .*old\.sqlite 'SELECT record"):
        verify_audit(tmp_path / "old.sqlite")


def test_an_answer_of_an_earlier_process_is_not_mixed_with_a_later_one_of_the_same_id(tmp_path):
    """vLLM counts its answers from 0 at each start."""
    early = {"kind": "window", "id": "a", "choice": 0, "time": 4.0, "release": "hold", "checked_at": 9, "start": 3}
    path = tmp_path / "trail"
    for records in ([{**early, "stop": 9}], [changed(windows__0__state="withheld", windows__1__state="withheld")]):
        file = JsonlFile(path, 10_000, 3)
        for record in records:
            file.write(record)
        file.close()
    report = verify_audit(path)
    assert report.ok and report.unfinished == 1 and report.released == 6 and report.withheld == 10, report.violations
