"""Report of one guarded answer, as front ends get it."""

from typing import Any

from anydepth.audit.answer import check_record, number
from anydepth.policy import policy_record
from anydepth.vllm.engine.flow_feed import FlowFeed


def answer_report(watch: FlowFeed, *, detector: str, checks: bool) -> dict[str, Any]:
    """What is known of an answer that has ended; all counts are tokens."""
    assert watch.outcome is not None
    verdict = watch.outcome.verdict
    report: dict[str, Any] = {
        "halt": watch.halted,
        "depth": verdict.depth,
        "score": number(verdict.score),
        "reason": verdict.reason,
        "errors": verdict.errors,
        "detector": detector,
        "policy": policy_record(watch.account.guard.policy),
        "release": watch.plan.release,
        "checked": len(watch.outcome.checks),
        "released": watch.account.depth - watch.plan.prefill,
        "prefill": watch.plan.prefill,
        "generated": watch.outcome.generated,
        "withheld": watch.withheld,
    }
    if watch.error is not None:
        report["error"] = watch.error
    if checks:
        report["checks"] = [check_record(each) for each in watch.outcome.checks]
    return report
