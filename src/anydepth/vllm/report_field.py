"""Tell a front end how a guarded answer ended, in the one field of vLLM's outputs that every front end gets."""

import json
from collections.abc import Mapping
from typing import Any

PREFIX = "anydepth:"
"""What the `stop_reason` of a halted answer starts with; compact JSON follows."""

KEY = "anydepth"
"""Name of our entry in `additional_config`, `SamplingParams.extra_args` and `RequestOutput.kv_transfer_params`."""


def refusal_report(error: Exception) -> dict[str, Any]:
    """Why a request is not answered at all: it asks for what the engine or the operator does not allow."""
    return {
        "halted": True,
        "would_halt": True,
        "reason": "refused",
        "error": str(error),
        "param": getattr(error, "param", None),
    }


def stop_reason(report: Mapping[str, Any]) -> str:
    """The `stop_reason` that carries a report."""
    return PREFIX + json.dumps(report, separators=(",", ":"), ensure_ascii=False)


def parse_stop_reason(reason: object) -> dict[str, Any] | None:
    """The report in a `stop_reason`, or None if it is not one of ours."""
    if not isinstance(reason, str) or not reason.startswith(PREFIX):
        return None
    return json.loads(reason.removeprefix(PREFIX))
