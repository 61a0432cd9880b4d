"""Report of one guarded answer, as front ends get it."""

from dataclasses import replace
from typing import Any

from anydepth.guard_report import GuardReport
from anydepth.vllm.engine.flow_feed import FlowFeed


def answer_report(watch: FlowFeed, *, detector: str, checks: bool) -> dict[str, Any]:
    """The record of the `GuardReport` of an answer that has ended, and what only the engine knows of it."""
    assert watch.outcome is not None
    report = GuardReport.of(watch.finished, watch.account.guard, tell=checks)
    record = replace(report, withheld_tokens=watch.withheld).record()
    record |= {"detector": detector, "prefill": watch.plan.prefill, "generated": watch.outcome.generated}
    return record if watch.error is None else record | {"error": watch.error}
