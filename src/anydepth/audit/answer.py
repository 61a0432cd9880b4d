"""Keep the account of one answer: every token, at which depth it was checked and when it left."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from anydepth.audit.trail import Audit, AuditError
from anydepth.config import GuardConfig
from anydepth.policy import policy_record
from anydepth.templates.template import Prompt
from anydepth.types import Answer, CheckResult, GateVerdict, Released, ScanResult, Verdict, stages_in
from anydepth.types import json_number as number

VERSION = 1


def check_record(check: CheckResult) -> dict[str, Any]:
    """A check as JSON; of its error the kind only, its text may quote the answer."""
    record: dict[str, Any] = {"depth": check.depth, "score": number(check.score), "statistic": number(check.statistic)}
    if check.error is not None:
        record["error"] = error_kind(check.error)
    if check.stages:
        record["stage"] = check.stages[-1].name  # the one that decided, or failed
    return record


def error_kind(error: str) -> str:
    """`CheckError` of `CheckError: the score is …`."""
    kind = error.partition(":")[0]
    return kind if kind.isidentifier() else "error"


def verdict_record(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON."""
    score = number(verdict.score)
    return {"halt": verdict.halt, "depth": verdict.depth, "score": score, "reason": verdict.reason}


def scan_record(scan: ScanResult, prompt: Prompt, guard: GuardConfig, **facts: Any) -> dict[str, Any]:
    """The audit record of a finished conversation that was scanned; `facts` are its id, choice, model, messages, …."""
    return {
        "kind": "scan",
        "version": VERSION,
        "time": time.time(),
        "endpoint": "moderations",
        **facts,
        "on_error": guard.on_error,
        "policy": policy_record(guard.policy),
        "schedule": repr(guard.schedule),
        "prompt_tokens": prompt.start,
        "prefill_tokens": prompt.prefill,
        "verdict": verdict_record(scan.verdict),
        "method": scan.method,
        "checks": [check_record(check) for check in scan.checks],
        **_stages(scan.checks),
    }


def gate_record(found: GateVerdict, prompt: Prompt, guard: GuardConfig, **facts: Any) -> dict[str, Any]:
    """The audit record of a tool call that was judged before it was run; `facts` are id, model, allowed, …."""
    verdict = {"halt": found.halt, "depth": found.depth, "score": number(found.score), "reason": found.reason}
    return {
        "kind": "gate",
        "version": VERSION,
        "time": time.time(),
        "endpoint": "gate",
        **facts,
        "tool": found.tool,
        "release": guard.release,
        "on_error": guard.on_error,
        "policy": policy_record(guard.policy),
        "prompt_tokens": prompt.start,
        "prefill_tokens": prompt.prefill,
        "verdict": verdict,
        "before": number(found.before),
        "error": None if found.error is None else error_kind(found.error),
        "method": found.method,
        **_stages(found.checks),
    }


def _stages(checks: Sequence[CheckResult]) -> dict[str, Any]:
    """The field with what the stages of a cascade did and used in these checks; none for other detectors."""
    found = stages_in(checks)
    return {} if found is None else {"stages": found}


@dataclass(slots=True)
class Account:
    """Writes the audit records of one answer.

    Each record is written in the audit's own thread, in order. Once the answer's record is made, no other follows it:
    a host that gives an answer up calls `broken` while the guard may still be at work on it.

    Attributes:
        audit: The trail that the records go to.
        id: Id of the response.
        choice: Index of the answer in the response.
        endpoint: `chat`, `responses` or `completions`.
        model: Name of the model.
        prompt: What the answer goes on from.
        guard: Options of the guard.
        end_token_ids: Tokens that end a turn.
        messages: The messages of the request, if the operator keeps text.
        calls: Whether token ids, those of a whole answer, have tool calls that the host keeps until the answer's end.
    """

    audit: Audit
    id: str
    choice: int
    endpoint: str
    model: str
    prompt: Prompt
    guard: GuardConfig
    end_token_ids: frozenset[int]
    messages: Any = None
    calls: Callable[[tuple[int, ...]], bool] = lambda token_ids: False
    begun: float = field(default_factory=time.time)
    checks: list[dict[str, Any]] = field(default_factory=list)
    left: list[dict[str, Any]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    depth: int = 0
    closed: bool = False
    _seen: list[CheckResult] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _zero: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.depth = self.prompt.prefill

    def _now(self) -> float:
        """The time of day when the answer began, and the seconds since: setting the clock changes no order."""
        return self.begun + time.monotonic() - self._zero

    def checked(self, check: CheckResult) -> None:
        """Note a check."""
        self.checks.append({**check_record(check), "time": self._now()})
        self._seen.append(check)

    def released(self, event: Released) -> None:
        """Write down that these tokens leave; AuditError if that cannot be, and then they must not."""
        self.audit.run(self._leave, event)

    def finished(self, answer: Answer) -> None:
        """Write the record of a finished answer; AuditError if that cannot be."""
        self.audit.run(self._finish, answer)

    def broken(self, outcome: str) -> None:
        """Write the record of an answer that was not finished: `cancelled`, `timeout`, `shutdown`, `error`, `audit`.

        It is written later if the disk takes its time. An answer that has its record already keeps that one.
        """
        self.audit.settle(self._break, outcome)

    def _leave(self, event: Released) -> None:
        if self.closed:
            raise AuditError("the answer was given up; nothing more of it leaves")
        covering = self.checks[-1]["depth"] if self.checks else None
        ends = int(event.token_ids[-1] in self.end_token_ids)
        covers = covering is not None and covering >= event.depth - ends
        window = {
            "start": self.depth,
            "stop": event.depth,
            "end_tokens": ends,
            "checked_at": covering if covers else None,
            "released": self._now(),
        }
        # Noted before it is written: where the disk hangs, the answer's record may have to be made meanwhile.
        self.depth = event.depth
        self.left.append(window)
        now = {"kind": "window", "id": self.id, "choice": self.choice, "time": self._now()}
        try:
            self.audit.write({**now, "release": self.guard.release, **window})
        except AuditError:
            self.left.remove(window)
            self.depth = window["start"]
            raise
        if self.messages is not None:
            self.text.append(event.text)

    def _finish(self, answer: Answer) -> None:
        windows = []
        for window in answer.windows:
            left = {"end_tokens": 0, "released": None}
            if window.state == "released":
                left = next((each for each in self.left if each["stop"] >= window.stop), left)
            windows.append({**asdict(window), "end_tokens": left["end_tokens"], "released": left["released"]})
        self._close(
            "finished",
            finish_reason=answer.finish_reason,
            verdict=verdict_record(answer.verdict),
            prompt_tokens=answer.prompt_tokens,
            generated_tokens=answer.generated_tokens,
            windows=windows,
            **({} if answer.usage is None else {"usage": dict(answer.usage)}),
        )

    def _break(self, outcome: str) -> None:
        self._close(
            outcome,
            finish_reason=None,
            verdict=None,
            prompt_tokens=self.prompt.start,
            generated_tokens=None,  # what the engine had beyond the released tokens was dropped unseen
            windows=[{**window, "state": "released"} for window in self.left],
        )

    def _close(self, outcome: str, **facts: Any) -> None:
        with self._lock:  # where the disk hangs, two threads may come to an end of the answer
            if self.closed:
                return
            self.closed = True
        guard = self.guard
        record: dict[str, Any] = {
            "kind": "answer",
            "version": VERSION,
            "id": self.id,
            "choice": self.choice,
            "time": self._now(),
            "begun": self.begun,
            "endpoint": self.endpoint,
            "model": self.model,
            "release": guard.release,
            "on_error": guard.on_error,
            "policy": policy_record(guard.policy),
            "schedule": repr(guard.schedule),
            "outcome": outcome,
            "prefill_tokens": self.prompt.prefill,
            **facts,
            "checks": list(self.checks),
            **_stages(tuple(self._seen)),
        }
        if self.messages is not None:
            record |= {"messages": self.messages, "text": "".join(self.text)}
        try:
            self.audit.write(record, late=outcome != "finished")
        except AuditError:  # a finished answer whose record is not stored is broken off, with another one
            self.closed = False
            raise
