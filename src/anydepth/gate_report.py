"""Say how the guard judged a proposed tool call, in the words that clients read."""

from dataclasses import replace
from typing import Any

from anydepth.audit.answer import error_kind, number
from anydepth.config import GuardConfig
from anydepth.policy import policy_record
from anydepth.types import GateVerdict


def allowed(found: GateVerdict, guard: GuardConfig) -> bool:
    """Whether the call may be run: under `monitor` it may, whatever was found."""
    return not found.halt or guard.release == "monitor"


def gate_report(found: GateVerdict, guard: GuardConfig) -> dict[str, Any]:
    """The fields `allowed`, `why`, `refusal` and `anydepth` of a reply to `POST /v1/gate`.

    Of an error it has the kind only: its text may quote the conversation.
    """
    may = allowed(found, guard)
    told = found if found.error is None else replace(found, error=error_kind(found.error))
    report = {
        "halted": not may,
        "would_halt": found.halt,
        "tool": found.tool,
        "score": number(found.score),
        "before": number(found.before),
        "statistic": number(found.statistic),
        "threshold": found.threshold,
        "depth": found.depth,
        "reason": found.reason,
        "policy": policy_record(guard.policy),
        "release": guard.release,
        "failed_checks": int(found.error is not None),
        "method": found.method,
    }
    return {"allowed": may, "why": told.why, "refusal": None if may else guard.refusal, "anydepth": report}
