"""The audit file: written whole, mended, rotated, locked, and found again when somebody moves it."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from anydepth.audit.file import FileInUse, JsonlFile
from anydepth.audit.reading import read_records
from anydepth.audit.verify import verify_audit

OURS = ("torn", "file")


def write(file: JsonlFile, *texts: str) -> None:
    for text in texts:
        file.write({"kind": "note", "text": text})


def told(path: Path) -> list[str]:
    """What a trail says, in order."""
    return [record.get("text") or record.get("reason") or record["kind"] for record in read_records(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "trail"


def test_a_new_file_is_its_owners(path):
    before = os.umask(0)
    try:
        JsonlFile(path, 10_000, 3).close()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_files_are_rotated_by_size_and_read_in_order(path):
    file = JsonlFile(path, 4096, 3)
    write(file, *(str(number) + " x" * 50 for number in range(400)))
    file.close()
    assert sorted(each.name for each in path.parent.iterdir()) == ["trail", "trail.1", "trail.2", "trail.3"]
    assert all(each.stat().st_size <= 4096 for each in path.parent.iterdir())
    numbers = [int(text.split()[0]) for text in told(path) if text != "rotated"]
    assert numbers == list(range(numbers[0], 400)) and 10 < len(numbers) < 400
    assert verify_audit(path).ok


def test_a_name_may_have_any_characters(tmp_path):
    path = tmp_path / "a[1]*?.jsonl"
    (tmp_path / "a1xx.jsonl.1").write_text("somebody else's")
    file = JsonlFile(path, 4096, 3)
    write(file, "x" * 3000, "y" * 3000)
    file.close()
    assert told(path) == ["start", "x" * 3000, "rotated", "y" * 3000] and verify_audit(path).ok


def test_a_number_that_is_free_is_used_before_a_file_is_dropped(path):
    """A process killed while it moved files up leaves a gap in their numbers."""
    file = JsonlFile(path, 4096, 3)
    write(file, *("x" * 3000 for _ in range(4)))
    (path.parent / "trail.1").rename(path.parent / "trail.9")
    oldest = (path.parent / "trail.3").read_bytes()
    write(file, "x" * 3000)
    assert (path.parent / "trail.3").read_bytes() == oldest
    file.close()


def test_fewer_files_are_kept_from_now_on_and_files_of_others_stay(path):
    file = JsonlFile(path, 4096, 5)
    write(file, *("x" * 3000 for _ in range(6)))
    file.close()
    (path.parent / "trail.20261128").write_text("somebody else's")
    file = JsonlFile(path, 4096, 2)
    write(file, "x" * 3000)
    file.close()
    names = sorted(each.name for each in path.parent.iterdir())
    assert names == ["trail", "trail.1", "trail.2", "trail.20261128"]
    assert verify_audit(path).ok


def short(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let the disk take `size` bytes and then be full."""
    real = os.write

    def full(file: int, data: bytes) -> int:
        if not size:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data[:size])

    monkeypatch.setattr(os, "write", full)


@pytest.mark.parametrize("size", [0, 1, 20])
def test_a_write_that_fails_leaves_no_half_line(path, monkeypatch, size):
    file = JsonlFile(path, 10_000, 2)
    write(file, "1")
    short(monkeypatch, size)
    with pytest.raises(OSError):
        write(file, "2")
    monkeypatch.undo()
    write(file, "3")
    assert told(path) == ["start", "1", "3"] and verify_audit(path).ok


def test_half_a_line_that_cannot_be_taken_out_is_marked_later(path, monkeypatch):
    file = JsonlFile(path, 10_000, 2)
    write(file, "1")
    short(monkeypatch, 20)
    monkeypatch.setattr(os, "ftruncate", fails)
    for text in ("2", "3"):  # the second one must not be glued onto the first
        with pytest.raises(OSError):
            write(file, text)
    monkeypatch.undo()
    write(file, "4")
    assert told(path) == ["start", "1", "torn", "changed", "4"]
    report = verify_audit(path)
    assert report.ok and report.torn == 1


def fails(*args: Any) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_a_record_that_does_not_reach_the_disk_is_not_stored(path, monkeypatch):
    file = JsonlFile(path, 10_000, 2, sync=True)
    write(file, "1")
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output"):
        write(file, "2")
    monkeypatch.undo()
    write(file, "3")
    assert told(path) == ["start", "1", "3"] and verify_audit(path).ok


def test_with_sync_records_and_names_are_brought_to_the_disk(path, monkeypatch):
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino) or real(file))
    file = JsonlFile(path, 4096, 2, sync=True)
    write(file, "1")
    assert synced.count(path.stat().st_ino) == 2 and path.parent.stat().st_ino in synced
    before = synced.count(path.parent.stat().st_ino)
    write(file, "x" * 4000)
    assert synced.count(path.parent.stat().st_ino) == before + 1
    file.close()


def test_room_that_was_tried_is_given_back(path):
    file = JsonlFile(path, 10_000, 2)
    size = path.stat().st_size
    file.probe()
    assert path.stat().st_size == size


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (b'{"kind": "note", "text": "hal', ["start", "a", "torn", "start", "b"]),
        (b'{"kind": "note", "text": "caf\xc3', ["start", "a", "torn", "start", "b"]),
        (b"\0" * 500, ["start", "a", "torn", "start", "b"]),
        (b"\n" * 70_000, ["start", "a", "start", "b"]),
    ],
)
def test_the_end_that_a_crash_left_is_mended(path, end, says):
    file = JsonlFile(path, 100_000, 2)
    write(file, "a")
    file.close()
    with path.open("ab") as opened:
        opened.write(end)
    file = JsonlFile(path, 100_000, 2)
    write(file, "b")
    file.close()
    assert told(path) == says
    report = verify_audit(path)
    assert report.ok and report.torn == ("torn" in says)
    torn = [record for record in read_records(path) if record["kind"] == "torn"]
    assert all(record["bytes"] == len(end) and record["partial"] == end.decode(errors="replace") for record in torn)


def test_every_place_where_a_line_can_be_cut(path):
    file = JsonlFile(path, 100_000, 2)
    write(file, "a")
    size = path.stat().st_size
    write(file, "b")
    file.close()
    whole = path.read_bytes()
    for cut in range(size, len(whole)):
        path.write_bytes(whole[:cut])
        file = JsonlFile(path, 100_000, 2)
        write(file, "c")
        file.close()
        report = verify_audit(path)
        kept = cut == len(whole) - 1  # all of it but the newline
        assert report.ok and report.torn == (cut > size and not kept), (cut, report.violations)
        assert told(path)[:2] == ["start", "a"] and ("b" in told(path)) == kept and told(path)[-1] == "c"


def test_the_first_line_may_be_cut_too(path):
    path.parent.mkdir()
    path.write_bytes(b'{"kind": "fil')
    JsonlFile(path, 100_000, 2).close()
    assert told(path) == ["torn", "start"] and verify_audit(path).ok


@pytest.mark.parametrize("how", ["moved", "deleted", "folder deleted", "replaced"])
def test_a_file_that_is_taken_away_is_begun_again(path, how):
    file = JsonlFile(path, 10_000, 5)
    write(file, "a", "b")
    moved = path.parent.parent / "moved"
    if how == "moved":
        path.rename(moved)
    elif how == "folder deleted":
        path.unlink()
        path.parent.rmdir()
    else:
        path.unlink()
    if how == "replaced":
        path.touch(0o600)
    write(file, "c")
    file.close()
    assert told(path) == ["replaced" if how == "replaced" else "missing", "c"]
    (fault,) = verify_audit(path).violations
    assert fault.startswith("records up to 3 are not here")
    if how == "moved":
        moved.rename(path.parent / "trail.1")
        assert told(path) == ["start", "a", "b", "missing", "c"] and verify_audit(path).ok


def test_logrotate_with_our_own_numbers_and_a_copy(path):
    """`create` moves the file to `.1` and makes a new one; `copytruncate` copies it and empties it."""
    file = JsonlFile(path, 10_000, 5)
    write(file, "a")
    path.rename(path.parent / "trail.1")
    path.touch(0o600)
    write(file, "b")
    assert verify_audit(path).ok
    (path.parent / "trail.1").rename(path.parent / "trail.2")
    (path.parent / "trail.1").write_bytes(path.read_bytes())
    os.truncate(path, 0)
    write(file, "c")
    file.close()
    assert told(path) == ["start", "a", "replaced", "b", "changed", "c"] and verify_audit(path).ok


def test_logrotate_may_drop_the_oldest_file(path):
    file = JsonlFile(path, 10_000, 5)
    for number in (3, 2, 1):
        write(file, "a")
        path.rename(path.parent / f"trail.{number}")
    write(file, "b")
    file.close()
    (path.parent / "trail.3").unlink()
    report = verify_audit(path)
    assert report.ok and report.begins == 3


def test_a_place_that_cannot_be_opened_again_is_an_error_until_it_can(path):
    file = JsonlFile(path, 10_000, 5)
    write(file, "a")
    path.unlink()
    path.mkdir()
    for _ in range(2):
        with pytest.raises(IsADirectoryError):
            write(file, "b")
        with pytest.raises(IsADirectoryError):
            file.probe()
    path.rmdir()
    file.probe()
    write(file, "c")
    assert told(path) == ["missing", "c"]


def test_a_file_that_somebody_shortened_is_told_by_the_gap(path):
    file = JsonlFile(path, 10_000, 5)
    write(file, "a", "b", "c")
    os.truncate(path, path.stat().st_size - 10)
    write(file, "d")
    assert told(path) == ["start", "a", "b", "torn", "changed", "d"]
    (fault,) = verify_audit(path).violations
    assert "1 records are missing before it, from 4 on" in fault


def test_a_rotation_that_fails_is_an_error_until_it_works(path):
    file = JsonlFile(path, 4096, 1)
    write(file, "x" * 3000)
    blocked = path.parent / "trail.1"
    (blocked / "in the way").mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(OSError):
            write(file, "y" * 3000)
        with pytest.raises(OSError):  # it must not say that all is well
            file.probe()
    (blocked / "in the way").rmdir()
    blocked.rmdir()
    file.probe()
    write(file, "z")
    assert told(path) == ["start", "x" * 3000, "rotated", "z"] and verify_audit(path).ok


def test_a_rotation_whose_new_file_cannot_be_opened_loses_nothing(path, monkeypatch):
    file = JsonlFile(path, 4096, 3)
    write(file, "x" * 3000)
    monkeypatch.setattr(os, "open", fails)
    with pytest.raises(OSError):
        write(file, "y" * 3000)
    monkeypatch.undo()
    write(file, "z")
    assert told(path) == ["start", "x" * 3000, "missing", "z"] and verify_audit(path).ok


def test_two_trails_on_one_file_are_refused(path):
    file = JsonlFile(path, 4096, 3)
    with pytest.raises(FileInUse, match="another server writes it"):
        JsonlFile(path, 4096, 3)
    write(file, *("x" * 3000 for _ in range(3)))
    with pytest.raises(FileInUse):  # the new file is locked as well
        JsonlFile(path, 4096, 3)
    (path.parent / "other").hardlink_to(path)
    with pytest.raises(FileInUse):
        JsonlFile(path.parent / "other", 4096, 3)
    file.close()
    JsonlFile(path, 4096, 3).close()
    assert verify_audit(path).ok


def test_a_trail_that_is_taken_over_stays_with_whom_has_it(path):
    """Whoever deletes the file lets another server in; then the first one must not write there."""
    first = JsonlFile(path, 4096, 3)
    path.unlink()
    second = JsonlFile(path, 4096, 3)
    with pytest.raises(FileInUse):
        write(first, "a")
    write(second, "b")
    second.close()
    write(first, "c")
    assert told(path) == ["start", "b", "replaced", "c"]


def test_a_server_that_is_about_to_begin_a_new_file_is_not_overtaken(path):
    """It has moved the file, or somebody has, and has not written since."""
    first = JsonlFile(path, 4096, 3)
    write(first, "a")
    path.rename(path.parent / "trail.1")
    with pytest.raises(FileInUse):
        JsonlFile(path, 4096, 3)
    write(first, "b")
    first.close()
    assert told(path) == ["start", "a", "replaced", "b"] and verify_audit(path).ok


def test_a_system_without_locks_is_refused_by_name(path, monkeypatch):
    monkeypatch.setattr("anydepth.audit.file.fcntl", None)
    with pytest.raises(OSError, match="no locks for files"):
        JsonlFile(path, 4096, 3)


def test_a_process_that_is_killed_lets_go_of_the_file(path):
    code = (
        "import os, sys; from pathlib import Path; from anydepth.audit.file import JsonlFile\n"
        f"file = JsonlFile(Path({str(path)!r}), 4096, 3)\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        with pytest.raises(FileInUse):
            JsonlFile(path, 4096, 3)
        process.kill()
    JsonlFile(path, 4096, 3).close()


def test_places_that_are_no_file_of_records(path):
    path.parent.mkdir()
    with pytest.raises(IsADirectoryError):
        JsonlFile(path.parent, 4096, 3)
    (path.parent / "target").touch()
    path.symlink_to(path.parent / "target")
    with pytest.raises(OSError, match=r"a symbolic link to '.*target'; give that path itself"):
        JsonlFile(path, 4096, 3)
    os.mkfifo(path.parent / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        JsonlFile(path.parent / "pipe", 4096, 3)
    with pytest.raises(OSError, match="not a regular file"):
        JsonlFile(Path("/dev/null"), 4096, 3)
    database = path.parent / "old.db"
    database.write_bytes(b"SQLite format 3\0" + b"\x01" * 100)
    with pytest.raises(OSError, match="not JSON lines"):
        JsonlFile(database, 4096, 3)
    assert database.stat().st_size == 116  # and nothing of it was mended


def test_text_that_has_no_utf8_is_stored(path):
    file = JsonlFile(path, 4096, 3)
    write(file, "a lone \ud800 surrogate, two\u2028lines, Grüße")
    assert told(path)[-1] == "a lone \ud800 surrogate, two\u2028lines, Grüße" and verify_audit(path).ok
