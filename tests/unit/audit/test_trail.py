"""The trail over a sink that fails, hangs and recovers."""

import asyncio
import errno
import threading
from typing import Any

import pytest

from anydepth.audit.file import JsonlFile
from anydepth.audit.reading import read_records
from anydepth.audit.trail import Audit, AuditError, open_audit
from anydepth.audit.verify import verify_audit
from anydepth.settings import AuditTable

NOTE = {"kind": "note", "id": "a"}


class Sink:
    """A disk in memory, which can be full, and can hang."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.full = self.closed = False
        self.goes, self.entered = threading.Event(), threading.Event()
        self.goes.set()

    def write(self, record: Any) -> None:
        self.probe()
        self.records.append(dict(record))

    def probe(self) -> None:
        self.entered.set()
        assert self.goes.wait(60)
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if self.full:
            raise OSError(errno.ENOSPC, "no space left")

    def close(self) -> None:
        self.closed = True

    @property
    def kinds(self) -> list[str]:
        return [record["kind"] for record in self.records]


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 30)


async def test_closed_raises_and_recovers():
    sink, told = Sink(), []
    audit = Audit(sink)
    audit.on_failure = lambda: told.append(1)
    sink.full = True
    with pytest.raises(AuditError, match="the answer was stopped"):
        audit.write(NOTE)
    await audit.recover()
    assert not audit.healthy and audit.failures == len(told) == 2
    sink.full = False
    await audit.recover()
    assert audit.healthy
    audit.write(NOTE)
    audit.close()


def test_open_goes_on():
    sink = Sink()
    audit = Audit(sink, "open")
    sink.full = True
    audit.write(NOTE)
    assert audit.failures == 1 and not audit.healthy


def full(*args: Any) -> None:
    raise OSError(errno.ENOSPC, "no space left")


def test_records_that_may_come_late_are_stored_in_their_order(tmp_path, monkeypatch):
    audit = open_audit(AuditTable(kind="jsonl", path=str(tmp_path / "trail")))
    with monkeypatch.context() as patch:
        patch.setattr(JsonlFile, "_try", full)
        audit.write({"kind": "first"}, late=True)
        audit.write({"kind": "second"}, late=True)
        with pytest.raises(AuditError):
            audit.write(NOTE)
    audit.write({"kind": "third"})
    audit.close()
    assert [record["kind"] for record in read_records(tmp_path / "trail")] == ["file", "first", "second", "third"]
    assert audit.failures == 3


def test_where_the_audit_fails_open_records_are_kept_in_memory_and_those_without_room_are_counted(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("anydepth.audit.trail.MOST_LATE", 3)
    audit = open_audit(AuditTable(kind="jsonl", path=str(tmp_path / "trail"), on_error="open"))
    with monkeypatch.context() as patch:
        patch.setattr(JsonlFile, "_try", full)
        for number in range(5):
            audit.write({"kind": "note", "id": number})
    audit.close()  # the disk takes records again
    records = list(read_records(tmp_path / "trail"))
    assert [record.get("id") for record in records] == [None, 0, 1, 2, None]
    assert records[-1]["kind"] == "lost" and records[-1]["records"] == 2
    assert records[-1]["since"] <= records[-1]["time"]
    report = verify_audit(tmp_path / "trail")
    assert report.ok and report.lost == 2


async def test_records_that_are_late_are_stored_without_another_answer():
    sink = Sink()
    audit = Audit(sink)
    sink.full = True
    audit.write(NOTE, late=True)
    sink.full = False
    await audit.recover()
    assert sink.kinds == ["note"]
    audit.close()


async def test_a_late_record_that_json_cannot_have_is_not_in_the_way_of_others(tmp_path, monkeypatch):
    audit = open_audit(AuditTable(kind="jsonl", path=str(tmp_path / "trail")))
    with monkeypatch.context() as patch:
        patch.setattr(JsonlFile, "write", full)
        audit.write({"kind": "note", "id": float("nan")}, late=True)
        audit.write(NOTE, late=True)
    audit.close()
    assert [record["kind"] for record in read_records(tmp_path / "trail")] == ["file", "note", "lost"]


def test_records_that_are_late_for_ever_are_told_in_the_log(caplog):
    sink = Sink()
    audit = Audit(sink)
    sink.full = True
    audit.write(NOTE, late=True)
    audit.close()
    assert sink.closed and any(getattr(each, "records", 0) == 1 for each in caplog.records)


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_a_record_that_json_cannot_have_stops_the_answer(tmp_path, value):
    audit = open_audit(AuditTable(kind="jsonl", path=str(tmp_path / "trail")))
    with pytest.raises(AuditError):
        audit.write({"kind": "note", "id": value})
    audit.write({"kind": "note", "id": value}, late=True)
    audit.write(NOTE)
    audit.close()
    assert [record["kind"] for record in read_records(tmp_path / "trail")] == ["file", "lost", "note"]


async def in_thread(audit: Audit, record: dict[str, Any]) -> None:
    """Store a record as a host in an event loop does."""
    await asyncio.wait_for(asyncio.to_thread(audit.run, audit.write, record), 30)


async def test_a_disk_that_hangs_stops_answers_and_nothing_else():
    sink = Sink()
    audit = Audit(sink, patience=0.2)
    sink.goes.clear()
    with pytest.raises(AuditError, match="takes too long"):
        await in_thread(audit, NOTE)
    assert audit.stuck and not audit.healthy
    with pytest.raises(AuditError):  # at once: nobody else waits for the disk
        await in_thread(audit, {"kind": "second"})
    audit.settle(audit.write, {"kind": "last"})
    await asyncio.wait_for(audit.recover(), 30)
    assert not audit.healthy and sink.records == []
    sink.goes.set()
    while not audit.healthy:
        await audit.recover()
    assert sink.kinds == ["note", "last"]  # the one that hung, and the one that had to be kept
    await in_thread(audit, NOTE)
    audit.close()


def test_a_disk_that_hangs_stops_no_answer_where_the_operator_says_so():
    sink = Sink()
    audit = Audit(sink, "open", patience=0.2)
    sink.goes.clear()
    for number in range(3):
        audit.run(audit.write, {"kind": str(number)})
    assert audit.failures == 3 and sink.kinds == []
    sink.goes.set()
    audit.close()
    assert sink.kinds == ["0", "1", "2"]


async def test_what_waits_behind_a_slow_record_fails_in_time():
    sink = Sink()
    audit = Audit(sink, patience=0.2)
    sink.goes.clear()
    both = await asyncio.gather(in_thread(audit, NOTE), in_thread(audit, NOTE), return_exceptions=True)
    assert [type(each) for each in both] == [AuditError, AuditError]
    sink.goes.set()
    audit.close()
    assert sink.kinds == ["note"]  # the other was taken back: it is not stored after its answer was stopped


async def test_two_threads_that_do_without_a_disk_do_not_wait_for_it():
    sink = Sink()
    audit = Audit(sink, patience=0.1)
    sink.goes.clear()
    with pytest.raises(AuditError):
        await in_thread(audit, NOTE)
    both = threading.Barrier(2)

    def work() -> None:
        both.wait(30)
        audit.write(NOTE)

    async def one() -> None:
        await asyncio.wait_for(asyncio.to_thread(audit.run, work), 30)

    results = await asyncio.gather(one(), one(), return_exceptions=True)
    assert [type(each) for each in results] == [AuditError, AuditError]
    sink.goes.set()
    audit.close()


def test_what_waits_is_stored_before_the_trail_is_closed_and_nothing_after():
    sink = Sink()
    audit = Audit(sink)
    for number in range(50):
        audit.settle(audit.write, {"kind": str(number)})
    audit.close()
    assert sink.kinds == [str(number) for number in range(50)]
    with pytest.raises(AuditError):
        audit.run(audit.write, NOTE)
    with pytest.raises(AuditError):
        audit.write(NOTE)


def test_works_that_wait_are_not_more_than_the_memory_has_room_for(monkeypatch):
    monkeypatch.setattr("anydepth.audit.trail.MOST_WAITING", 3)
    sink = Sink()
    audit = Audit(sink, patience=0.1)
    sink.goes.clear()
    for _ in range(5):
        audit.settle(audit.write, NOTE)
    sink.goes.set()
    audit.close()
    assert sink.kinds.count("note") == 3 and audit.failures == 2


def test_without_an_audit_nothing_is_kept_and_no_thread_is_needed():
    audit, done = open_audit(AuditTable()), []
    audit.run(done.append, 1)
    audit.settle(done.append, 2)
    audit.write(NOTE)
    assert done == [1, 2] and audit.healthy
    audit.close()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditError, match="file/audit: File exists; give a place"):
        open_audit(AuditTable(kind="jsonl", path=str(tmp_path / "file" / "audit")))
    with pytest.raises(AuditError, match="Is a directory; give a place"):
        open_audit(AuditTable(kind="jsonl", path=str(tmp_path)))
    audit = open_audit(AuditTable(kind="jsonl", path=str(tmp_path / "audit")))
    with pytest.raises(AuditError, match="another server writes it; give each server a path of its own"):
        open_audit(AuditTable(kind="jsonl", path=str(tmp_path / "audit")))
    audit.close()
