"""Count for Prometheus what the stages of cascades did and used."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from anydepth.prices import Prices
from anydepth.types import CheckResult


class StageMetrics:
    """Counters by the name of the stage; without samples where the detector is no cascade.

    Args:
        registry: What they are registered in.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        own: Any = {"registry": registry}
        self.checks = Counter(
            "anydepth_stage_checks",
            "Checks at which a stage of a cascade was asked: that it decided, passed on to the next, or failed.",
            ["stage", "outcome"],
            **own,
        )
        self.seconds = Counter("anydepth_stage_seconds", "Time of the stages of cascades.", ["stage"], **own)
        self.tokens = Counter(
            "anydepth_stage_tokens", "Tokens of look-aheads, and of an external guard by its word.", ["stage", "kind"],
            **own,
        )  # fmt: skip
        self.requests = Counter("anydepth_stage_requests", "Requests to an external guard.", ["stage"], **own)
        self.cost = Counter(
            "anydepth_stage_cost", "Cost of an external guard by the operator's prices.", ["stage"], **own
        )

    def count(self, check: CheckResult) -> None:
        """Count one check."""
        for place, stage in enumerate(check.stages, 1):
            ended = "decided" if check.error is None else "failed"
            self.checks.labels(stage.name, ended if place == len(check.stages) else "passed_on").inc()
            self.seconds.labels(stage.name).inc(stage.seconds)
            spent = stage.spent
            for kind in ("look_ahead", "prompt", "completion"):
                if tokens := getattr(spent, f"{kind}_tokens"):
                    self.tokens.labels(stage.name, kind).inc(tokens)
            if spent.requests:
                self.requests.labels(stage.name).inc(spent.requests)
            if spent.cost is not None:
                self.cost.labels(stage.name).inc(spent.cost)

    def count_sums(self, sums: Mapping[str, Mapping[str, Any]], prices: Prices | None) -> None:
        """Count the checks of one answer.

        Args:
            sums: What its stages did, in the order in which they are asked; see `Answer.stages`.
            prices: What the external guard costs; None if that is not known.
        """
        following = [stage["checks"] for stage in sums.values()][1:]
        for (name, stage), asked_next in zip(sums.items(), [*following, 0], strict=True):
            failed = stage["checks"] - stage["decided"] - asked_next
            for outcome, count in (("decided", stage["decided"]), ("passed_on", asked_next), ("failed", failed)):
                if count:
                    self.checks.labels(name, outcome).inc(count)
            self.seconds.labels(name).inc(stage["seconds"])
            for kind in ("look_ahead", "prompt", "completion"):
                if tokens := stage[f"{kind}_tokens"]:
                    self.tokens.labels(name, kind).inc(tokens)
            if stage["requests"]:
                self.requests.labels(name).inc(stage["requests"])
                if prices is not None:
                    self.cost.labels(name).inc(prices.cost(stage["prompt_tokens"], stage["completion_tokens"]))
