"""Count what the server does, for Prometheus."""

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from anydepth.server.answer.usage import token_counts
from anydepth.server.engine.engine import EngineStats
from anydepth.server.telemetry.spending_metrics import SpendingMetrics
from anydepth.server.telemetry.stage_metrics import StageMetrics
from anydepth.types import Checked, Event, Finished, Released

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
disable_created_metrics()
_TOKENS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def gate_counter(registry: CollectorRegistry) -> Counter:
    """Counts proposed tool calls that were judged, by whether they may be run and by the reason."""
    text, labels = "Proposed tool calls that were judged.", ["allowed", "reason"]
    return Counter("anydepth_gates", text, labels, registry=registry)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        self.requests = Counter("anydepth_requests", "HTTP requests.", ["path", "status"], **own)
        self.answers = Counter("anydepth_answers", "Answers that ended.", ["outcome"], **own)
        self.blocked = Counter("anydepth_blocked", "Answers that were halted.", ["reason"], **own)
        self.checks = Counter("anydepth_checks", "Checks of answers.", ["result"], **own)
        self.check_seconds = Histogram("anydepth_check_seconds", "Time of a check.", buckets=_SECONDS, **own)
        self.leak = Histogram(
            "anydepth_leak_tokens", "Tokens that had left when an answer was halted.", buckets=_TOKENS, **own
        )
        self.tokens = Counter("anydepth_tokens", "Tokens of answers.", ["state"], **own)
        self.prompt_tokens = Counter("anydepth_prompt_tokens", "Tokens of prompts, prefills included.", **own)
        self.first_release = Histogram(
            "anydepth_first_release_seconds", "Time until the first token of an answer left.", buckets=_SECONDS, **own
        )
        self.seconds = Histogram("anydepth_answer_seconds", "Time of an answer.", buckets=_SECONDS, **own)
        self.scans = Counter("anydepth_scans", "Finished conversations that were scanned.", ["flagged"], **own)
        self.stages = StageMetrics(self.registry)
        self.gates = gate_counter(self.registry)
        self.audit_failures = Counter("anydepth_audit_failures", "Records that could not be written.", **own)

    def watch(self, stats: Callable[[], EngineStats], ready: Callable[[], bool]) -> None:
        """Report what the server is doing whenever the metrics are read."""
        for name, text, value in (
            ("anydepth_ready", "1 if the server takes requests.", ready),
            ("anydepth_live_answers", "Answers under way.", lambda: stats().live),
            ("anydepth_queue_length", "Answers that wait.", lambda: stats().waiting),
        ):
            Gauge(name, text, registry=self.registry).set_function(value)

    def watch_spending(self, report: Callable[[], Mapping[str, Any]]) -> None:
        """Report what an API says that it was asked, of an `ApiBackend.report`, whenever the metrics are read."""
        self.registry.register(SpendingMetrics(report))

    def text(self) -> bytes:
        """The metrics as Prometheus reads them."""
        return generate_latest(self.registry)


class Watcher:
    """Counts one answer."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._begun, self._released = metrics, perf_counter(), False

    def see(self, event: Event) -> None:
        """Count an event."""
        metrics = self._metrics
        if isinstance(event, Checked):
            metrics.checks.labels("ok" if event.check.error is None else "error").inc()
            metrics.stages.count(event.check)
        elif isinstance(event, Released) and event.token_ids:
            if not self._released:
                self._released = True
                metrics.first_release.observe(perf_counter() - self._begun)
            metrics.tokens.labels("released").inc(len(event.token_ids))
        elif isinstance(event, Finished):
            answer = event.answer
            metrics.prompt_tokens.inc(token_counts(answer)[0])
            metrics.tokens.labels("withheld").inc(max(0, answer.generated_tokens - len(answer.token_ids)))
            if answer.halted:
                metrics.blocked.labels(answer.verdict.reason).inc()
                metrics.leak.observe(answer.leak)

    def ended(self, outcome: str) -> None:
        """Count the end of the answer."""
        self._metrics.answers.labels(outcome).inc()
        self._metrics.seconds.observe(perf_counter() - self._begun)
