"""Tell Prometheus what an API was asked and what it says that this used."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

_PURPOSES = ("answers", "checks", "trials")


class SpendingMetrics(Collector):
    """Counters of requests, tokens and cost by purpose, read from a report when they are asked for.

    Args:
        report: Gives the report; see `ApiBackend.report`.
    """

    def __init__(self, report: Callable[[], Mapping[str, Any]]) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        """The counters; no cost where the operator has given no prices."""
        report = self._report()
        requests = CounterMetricFamily("anydepth_upstream_requests", "Requests to the upstream.", labels=["purpose"])
        tokens = CounterMetricFamily(
            "anydepth_upstream_tokens", "Tokens by the upstream's word, a lower bound.", labels=["purpose", "kind"]
        )
        cost = CounterMetricFamily("anydepth_upstream_cost", "Cost by the operator's prices.", labels=["purpose"])
        for purpose in _PURPOSES:
            sums = report[purpose]
            requests.add_metric([purpose], sums["requests"])
            for kind in ("prompt", "completion"):
                tokens.add_metric([purpose, kind], sums[f"{kind}_tokens"])
            if sums["cost"] is not None:
                cost.add_metric([purpose], sums["cost"])
        yield from (requests, tokens, cost)
