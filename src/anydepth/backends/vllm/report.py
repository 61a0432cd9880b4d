"""Tell a front end how a guarded answer ended, in the one field of vLLM's outputs that every front end gets."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from anydepth.backends.vllm.watch import Watch
from anydepth.guard_report import GuardReport

PREFIX = "anydepth:"
"""What the `stop_reason` of a halted answer starts with; compact JSON follows."""

KEY = "anydepth"
"""Name of our entry in `additional_config`, `SamplingParams.extra_args` and `RequestOutput.kv_transfer_params`."""


def answer_report(watch: Watch, *, detector: str, checks: bool) -> dict[str, Any]:
    """The record of the `GuardReport` of an answer that has ended, and what only the engine knows of it."""
    assert watch.outcome is not None
    report = GuardReport.of(watch.finished, watch.account.guard, tell=checks)
    record = replace(report, withheld_tokens=watch.withheld).record()
    record |= {"detector": detector, "prefill": watch.plan.prefill, "generated": watch.outcome.generated}
    return record if watch.error is None else record | {"error": watch.error}


def refusal_report(error: Exception) -> dict[str, Any]:
    """Why a request is not answered at all: it asks for what the engine or the operator does not allow."""
    return {"halted": True, "reason": "refused", "error": str(error), "param": getattr(error, "param", None)}


def stop_reason(report: Mapping[str, Any]) -> str:
    """The `stop_reason` that carries a report."""
    return PREFIX + json.dumps(report, separators=(",", ":"), ensure_ascii=False)


def parse_stop_reason(reason: object) -> dict[str, Any] | None:
    """The report in a `stop_reason`, or None if it is not one of ours."""
    if not isinstance(reason, str) or not reason.startswith(PREFIX):
        return None
    return json.loads(reason.removeprefix(PREFIX))
