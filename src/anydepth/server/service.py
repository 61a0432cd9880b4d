"""Answer requests: what the endpoints have in common."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from opentelemetry.trace import Span

from anydepth.audit.answer import Account, error_kind
from anydepth.audit.trail import Audit
from anydepth.errors import AnydepthError, ModelNotFound
from anydepth.gate import require_halting
from anydepth.server.answer.compose import Composer, Delta, End, Reading, has_calls
from anydepth.server.answer.segments import SpecialTokens
from anydepth.server.engine.engine import AnswerTimeout, Busy, Engine, EngineError, Job, ShuttingDown
from anydepth.server.telemetry.metrics import Metrics, Watcher
from anydepth.server.telemetry.tracing import answer_span, note_answers, note_check
from anydepth.settings import Settings
from anydepth.templates.call_formats import ToolFormat, choose_format
from anydepth.types import Checked, CheckResult

logger = logging.getLogger(__name__)

Piece = tuple[int, Delta | End]


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request asks for.

    Attributes:
        endpoint: `chat` or `completions`.
        jobs: One an answer.
        reading: How each answer is read.
        tell_checks: Whether the client sees every check.
        messages: The request's own words, for an audit that keeps text.
        prompts: How many prompts the jobs have; each has as many jobs, one after the other.
        headers: The request's headers, for the trace it belongs to.
    """

    endpoint: str
    jobs: tuple[Job, ...]
    readings: tuple[Reading, ...]
    tell_checks: bool = False
    messages: Any = None
    prompts: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))


class Service:
    """One engine with limits, metrics and the audit trail around it.

    Args:
        engine: The engine that generates the answers.
        settings: The operator's settings.
        audit: The audit trail that the account of every answer goes to.

    Raises:
        ConfigError: Calls are to be gated, and one reading can never halt under the policy.
    """

    def __init__(self, engine: Engine, settings: Settings, audit: Audit) -> None:
        self.engine, self.settings, self.audit = engine, settings, audit
        if settings.tools.gate:
            require_halting(engine.facts.guard.policy)
        self.metrics = Metrics()
        self.metrics.watch(lambda: engine.stats, lambda: self.ready)
        if (report := getattr(engine, "report", None)) is not None:
            self.metrics.watch_spending(report)
        self.draining = False
        engine.on_check = self.metrics.check_seconds.observe
        audit.on_failure = self.metrics.audit_failures.inc
        template = getattr(engine.facts.template.tokenizer, "chat_template", None)
        self.special = SpecialTokens.of(engine.facts.template.tokenizer)
        self.tool_format: ToolFormat | None = choose_format(settings.tools.format, str(template or ""))

    @property
    def ready(self) -> bool:
        """True if requests are taken: the engine runs, the audit can be written, nothing is being shut down."""
        return self.engine.ready and not self.draining and self.audit.healthy

    @property
    def waits_for_text(self) -> bool:
        """True if the status of a stream waits for its first text: a block, or an upstream that fails, has its own."""
        return self.settings.blocked.style == "error" or self.settings.upstream.url is not None

    def check_model(self, name: str | None) -> str:
        """The model's name; ModelNotFound for another one."""
        served = self.engine.facts.model
        if name is not None and name != served:
            raise ModelNotFound(f"the model {name!r} is not served here; ask for {served!r}")
        return served

    async def run(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        """The pieces of all answers of a request, as they come; each answer's last one is its `End`."""
        ends: dict[int, End] = {}
        with answer_span(_OPERATIONS[ask.endpoint], self.engine.facts.model, ask.jobs[0], ask.headers) as span:
            answers = [self._answer(ask, index, span) for index in range(len(ask.jobs))]
            async with aclosing(_merged(answers)) as pieces:
                async for index, piece in pieces:
                    if isinstance(piece, End):
                        ends[index] = piece
                        if len(ends) == len(answers):
                            note_answers(span, ask.id, [ends[i].answer for i in sorted(ends)])
                    yield index, piece

    async def _answer(self, ask: Ask, index: int, span: Span) -> AsyncGenerator[Delta | End, None]:
        """The pieces of one answer. Its record is the guard's to write, until the answer is given up here."""
        job, reading = ask.jobs[index], ask.readings[index]
        account = self._account(ask, index)
        composer, watcher, outcome = Composer(reading), Watcher(self.metrics), "cancelled"
        try:
            async with aclosing(self.engine.submit(job, account)) as events:
                async for event in events:
                    watcher.see(event)
                    if isinstance(event, Checked):
                        _note(event.check, ask, span)
                    for piece in composer.write(event):
                        if isinstance(piece, End):
                            outcome = piece.finish_reason
                        yield piece
        except Exception as error:
            outcome = _outcome(error) or ("error" if account.checks else None)
            if isinstance(error, EngineError) and error.__cause__ is not None:
                logger.error("the engine failed", exc_info=error.__cause__, extra={"id": ask.id})
            raise
        finally:
            if outcome is not None:  # else it never became an answer
                watcher.ended(outcome)
                if not account.closed:  # else the guard has written its record
                    account.broken(outcome)

    def _account(self, ask: Ask, index: int) -> Account:
        job, facts = ask.jobs[index], self.engine.facts
        return Account(
            audit=self.audit,
            id=ask.id,
            choice=index,
            endpoint=ask.endpoint,
            model=facts.model,
            prompt=job.prompt,
            guard=job.guard,
            end_token_ids=facts.end_token_ids,
            messages=ask.messages if self.settings.audit.text else None,
            calls=partial(has_calls, ask.readings[index]),
        )


_OPERATIONS = {"chat": "chat", "responses": "chat", "completions": "text_completion"}


def _note(check: CheckResult, ask: Ask, span: Span) -> None:
    note_check(span, check)
    if check.error is not None:
        logger.warning("check failed", extra={"id": ask.id, "error": error_kind(check.error)})


def _outcome(error: Exception) -> str | None:
    """How an answer ended that was not finished; None for a request that was refused."""
    if isinstance(error, Busy | ValueError):
        return None
    kinds = {AnswerTimeout: "timeout", ShuttingDown: "shutdown"}
    return next((name for kind, name in kinds.items() if isinstance(error, kind)), "error")


async def _merged(answers: Sequence[AsyncGenerator[Delta | End, None]]) -> AsyncGenerator[Piece, None]:
    """What several answers give, in the order in which it comes; the first error ends all."""
    if len(answers) == 1:
        async with aclosing(answers[0]) as only:
            async for piece in only:
                yield 0, piece
        return
    inbox: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()

    async def pump(index: int, answer: AsyncIterator[Delta | End]) -> None:
        try:
            async for piece in answer:
                await inbox.put((index, piece))
            await inbox.put(None)
        except Exception as error:  # handed to whoever reads
            await inbox.put(error)

    pumps = [asyncio.create_task(pump(index, answer)) for index, answer in enumerate(answers)]
    try:
        for _ in pumps:
            while (item := await inbox.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for answer in answers:
            with suppress(AnydepthError):
                await answer.aclose()
