"""OpenTelemetry spans of answers, by the names of the gen_ai conventions; without an SDK they cost nothing."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from anydepth.server.answer.usage import token_counts
from anydepth.server.engine.engine import Job
from anydepth.types import Answer, CheckResult

_tracer = trace.get_tracer("anydepth")


@contextmanager
def answer_span(operation: str, model: str, job: Job, headers: Mapping[str, str]) -> Iterator[Span]:
    """A span around the answers of one request; the caller's own trace goes on in it. No text is recorded."""
    given = {name: getattr(job.sampling, name) for name in ("temperature", "top_p", "top_k", "seed")}
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "anydepth",
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": job.max_new_tokens,
        "anydepth.release": job.guard.release,
        **{f"gen_ai.request.{name}": value for name, value in given.items() if value is not None},
    }
    span = _tracer.start_span(
        f"{operation} {model}",
        context=propagate.extract(headers),
        kind=SpanKind.SERVER,
        attributes=attributes,
    )
    try:
        yield span
    except BaseException as error:
        span.set_status(Status(StatusCode.ERROR))
        span.set_attribute("error.type", type(error).__name__)
        raise
    finally:
        span.end()


def note_check(span: Span, check: CheckResult) -> None:
    """Note a check in the span."""
    if span.is_recording():
        facts = {"depth": check.depth, "score": check.score, "failed": check.error is not None}
        span.add_event("anydepth.check", {f"anydepth.{name}": value for name, value in facts.items()})


def note_answers(span: Span, identity: str, answers: Sequence[Answer]) -> None:
    """Note how the answers ended."""
    if span.is_recording() and answers:
        span.set_attribute("gen_ai.response.id", identity)
        span.set_attribute("gen_ai.response.finish_reasons", [answer.finish_reason for answer in answers])
        counts = [token_counts(answer) for answer in answers]
        span.set_attribute("gen_ai.usage.input_tokens", max(prompt for prompt, _ in counts))
        span.set_attribute("gen_ai.usage.output_tokens", sum(generated for _, generated in counts))
        span.set_attribute("anydepth.halted", any(answer.halted for answer in answers))
