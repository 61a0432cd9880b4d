"""Report of one guarded answer, as front ends get it."""

from dataclasses import replace
from typing import Any

from anydepth.guard_report import GuardReport, without_cost
from anydepth.vllm.engine.flow_feed import FlowFeed
from anydepth.vllm.engine.gate_feed import GateFeed


def answer_report(feed: FlowFeed | GateFeed, *, detector: str, checks: bool) -> dict[str, Any]:
    """The record of the `GuardReport` of an answer that has ended, and what only the engine knows of it.

    Of a call that was judged, its verdict.
    What the stages of a cascade did is there in any case, as `stage_sums`: the front counts it, and takes it out.
    """
    if isinstance(feed, GateFeed):
        return feed.report(detector)
    assert feed.outcome is not None
    answer = feed.finished
    report = GuardReport.of(answer, feed.account.guard, tell=checks)
    record = replace(report, withheld_tokens=feed.withheld).record()
    record |= {"detector": detector, "prefill": feed.plan.prefill, "generated": feed.outcome.generated}
    if answer.stages is not None:
        record["stage_sums"] = without_cost(answer.stages)
    return record if feed.error is None else record | {"error": feed.error}
