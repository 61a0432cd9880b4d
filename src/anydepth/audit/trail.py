"""Store the records of answers before anything leaves, and stop the answers where they cannot be stored."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from anydepth.audit.chain import Record
from anydepth.audit.file import FileInUse, JsonlFile
from anydepth.errors import AnydepthError
from anydepth.settings import AuditTable
from anydepth.types import OnError

logger = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds that a record may take until it is on the disk."""
TRIAL = 1.0
"""Seconds that a request for the trail's health waits for a trial."""
MOST_WAITING = 10_000
"""Works that may wait for a disk that hangs."""
MOST_LATE = 1000
"""Records that are kept in memory until the disk takes them."""


class AuditError(AnydepthError):
    """The audit trail cannot be written, and answers stop because of it."""


class Audit:
    """The audit trail of a server, and what becomes of answers while it cannot be written.

    `write` waits for the disk. Whatever writes for an answer is given to `run` or `settle` instead, which have it done
    in one thread, in the order in which they are called. `run` waits for that thread, `patience` seconds at most. It is
    called in the model's thread: while a disk hangs, all answers wait that long, once; then each fails at once.

    Args:
        sink: The file of records, or None for no audit.
        on_error: `closed` raises AuditError. `open` goes on and says so in the log; the record is kept in memory until
            it can be stored, unless `MOST_LATE` are kept already: then it is lost, and a `lost` record says so later.
        patience: Seconds that a record may take until it counts as not stored.

    Attributes:
        failures: Records that could not be stored.
        on_failure: Called for each of them, from any thread.
    """

    def __init__(self, sink: JsonlFile | None, on_error: OnError = "closed", patience: float = PATIENCE) -> None:
        self._sink, self._on_error, self._patience = sink, on_error, patience
        self.failures = 0
        self.on_failure: Callable[[], None] = lambda: None
        self._lock, self._counting = threading.Lock(), threading.Lock()
        self._broken = self._closed = False
        self._late: deque[Record] = deque()
        self._lost, self._lost_since = 0, 0.0
        self._thread = ThreadPoolExecutor(1, "anydepth-audit")
        self._waiting: set[Future[None]] = set()
        self._busy_since: float | None = None
        self._barred: set[int] = set()
        self._trial: Future[None] | None = None

    @property
    def healthy(self) -> bool:
        """True unless the last record could not be stored; `recover` finds out whether one can be now."""
        return not (self._broken or self.stuck)

    @property
    def stuck(self) -> bool:
        """True while the thread waits for the disk for longer than `patience`."""
        begun = self._busy_since
        return begun is not None and time.monotonic() - begun >= self._patience

    def write(self, record: Record, *, late: bool = False) -> None:
        """Store a record.

        Args:
            record: Values that JSON has.
            late: Whether it may be stored later, whatever `on_error` says: nothing leaves because of it.

        Raises:
            AuditError: The record is not stored, cannot be later, and the audit fails closed.
        """
        if self._sink is None:
            return
        try:
            if threading.get_ident() in self._barred:
                raise OSError("it is closed" if self._closed else self._slow())
            with self._lock:
                self._store(self._sink, record)
        except (OSError, ValueError, TypeError) as error:
            self._fail(error)
            if late or self._on_error == "open":
                self._keep(record, retry=isinstance(error, OSError))
            else:
                raise AuditError("the audit trail cannot be written; the answer was stopped") from error

    def _store(self, sink: JsonlFile, record: Record) -> None:
        if self._broken:
            sink.probe()  # a short record may fit where the next one will not
        self._store_late(sink)
        sink.write(record)
        self._broken = False

    def _store_late(self, sink: JsonlFile) -> None:
        while self._late:
            try:
                sink.write(self._late[0])
            except (ValueError, TypeError) as error:  # it would be in the way of all others for ever
                self._fail(error)
                self._keep(self._late[0], retry=False)
            self._late.popleft()
        if lost := self._lost:
            sink.write({"kind": "lost", "time": time.time(), "records": lost, "since": self._lost_since})
            with self._counting:
                self._lost -= lost

    def _keep(self, record: Record, *, retry: bool) -> None:
        """Keep a record until it can be stored; one that never can be, or that there is no room for, is counted."""
        with self._counting:
            if retry and len(self._late) < MOST_LATE:
                self._late.append(record)
            else:
                self._lost_since = self._lost_since if self._lost else time.time()
                self._lost += 1

    def _fail(self, error: Exception) -> None:
        self.failures += 1
        self._broken = True
        logger.error("the audit trail cannot be written", extra={"error": f"{type(error).__name__}: {error}"})
        self.on_failure()

    def run(self, work: Callable[..., None], *args: Any) -> None:
        """Do `work(*args)`, which writes records, in the thread, and wait for it as long as `patience` allows.

        Raises:
            AuditError: A record is not stored, or not in time, and the audit fails closed.
        """
        if self._sink is None or self._closed or self.stuck:
            self._without_disk(work, *args)
            return
        task = self._submit(work, *args)
        if wait({task}, self._patience).done:
            task.result()
        elif task.cancel():  # it has not begun
            self._without_disk(work, *args)
        else:
            self._fail(TimeoutError(self._slow()))
            if self._on_error == "closed":
                raise AuditError("the audit trail takes too long; the answer was stopped")

    def settle(self, work: Callable[..., None], *args: Any) -> None:
        """Have `work(*args)`, which writes the last record of an answer, done in the thread; waits for nothing."""
        if self._sink is None or self._closed or len(self._waiting) >= MOST_WAITING:
            self._without_disk(_quietly, work, *args)
        else:
            self._submit(_quietly, work, *args)

    async def recover(self) -> None:
        """After a failure, try whether records can be stored now; waits for at most `TRIAL` seconds."""
        if self._sink is None or self._closed or self.healthy:
            return
        if self._trial is None or self._trial.done():
            self._trial = self._submit(self._try)
        await asyncio.wait({asyncio.wrap_future(self._trial)}, timeout=TRIAL)

    def _slow(self) -> str:
        return f"the disk has not taken a record for {self._patience:g} s"

    def _try(self) -> None:
        assert self._sink is not None
        try:
            with self._lock:
                self._sink.probe()
                self._store_late(self._sink)
            self._broken = False
        except (OSError, ValueError) as error:
            self._fail(error)

    def _submit(self, work: Callable[..., None], *args: Any) -> "Future[None]":
        task = self._thread.submit(self._do, work, *args)
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return task

    def _do(self, work: Callable[..., None], *args: Any) -> None:
        self._busy_since = time.monotonic()
        try:
            work(*args)
        finally:
            self._busy_since = None

    def _without_disk(self, work: Callable[..., None], *args: Any) -> None:
        """Do `work(*args)` here and now; no record is stored, each is a failure at once."""
        thread = threading.get_ident()
        self._barred.add(thread)
        try:
            work(*args)
        finally:
            self._barred.discard(thread)

    def close(self) -> None:
        """Store what waits, then let go of the file."""
        self._closed = True
        self._thread.shutdown()
        if self._sink is None:
            return
        with self._lock:
            try:
                self._store_late(self._sink)
            except OSError as error:
                logger.error("records are lost", extra={"records": len(self._late) + self._lost, "error": str(error)})
            self._sink.close()


def _quietly(work: Callable[..., None], *args: Any) -> None:
    try:
        work(*args)
    except AuditError:
        pass  # `write` has counted and logged it
    except Exception as error:  # nobody waits for it who could be told
        logger.error("the last record of an answer failed", extra={"error": type(error).__name__})


def open_audit(table: AuditTable) -> Audit:
    """Open the audit trail of the settings' `[audit]` table.

    Raises:
        AuditError: It cannot be opened, or another server writes it.
    """
    if table.kind == "none":
        return Audit(None)
    try:
        sink = JsonlFile(Path(table.path), table.max_bytes, table.keep, sync=table.sync)
    except OSError as error:
        in_use = isinstance(error, FileInUse)
        remedy = "each server a path of its own, or stop the other one" if in_use else "a place that can be written"
        raise AuditError(f"[audit] path {table.path}: {error.strerror or error}; give {remedy}") from error
    return Audit(sink, table.on_error)
