"""Count what the stages of cascades did, among vLLM's own metrics."""

from functools import cache

from prometheus_client import REGISTRY

from anydepth.prices import Prices
from anydepth.server.telemetry.stage_metrics import StageMetrics
from anydepth.settings import Settings
from anydepth.vllm.front.reports import ResponseReports


@cache
def _metrics() -> StageMetrics:
    """The metrics of this process: vLLM's `/metrics` shows what is in this registry, which takes each name once."""
    return StageMetrics(REGISTRY)


def count_stages(page: ResponseReports, settings: Settings) -> None:
    """Count the answers of one response."""
    table = settings.external.prices
    prices = None if table is None else Prices(table.prompt, table.completion)
    for told in page.values():
        if sums := told.get("stage_sums"):
            _metrics().count_sums(sums, prices)
