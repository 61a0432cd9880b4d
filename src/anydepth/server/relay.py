"""Bring the events of an engine to the client: each is written into the audit trail before it goes on."""

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from math import nan

from anydepth.audit.answer import Account, error_kind
from anydepth.audit.trail import AuditError
from anydepth.server.engine.engine import AnswerTimeout, Busy, Engine, EngineError, Job, ShuttingDown
from anydepth.types import Answer, Checked, Event, Finished, Halted, Released, Verdict

logger = logging.getLogger(__name__)


async def relay(
    engine: Engine,
    job: Job,
    account: Account,
    see: Callable[[Event], None],
    settle: Callable[[Answer], Answer] = lambda answer: answer,
) -> AsyncGenerator[Event, None]:
    """The events of one answer, accounted for.

    `settle` says what the client gets of a finished answer, before that is written down.

    If the account cannot be kept (and the audit fails closed), the answer ends with a refusal at once, and what was not
    written down does not leave.
    """
    text: list[str] = []
    ids: list[int] = []
    answer: Answer | None = None
    halted = False
    try:
        async with aclosing(engine.submit(job)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    answer = settle(event.answer)
                    event = Finished(answer)
                await _note(account, event)
                if isinstance(event, Released):
                    text.append(event.text)
                    ids.extend(event.token_ids)
                halted = halted or isinstance(event, Halted)
                see(event)
                yield event
    except AuditError:
        await account.audit.settle(account.broken, "audit")
        for event in _stopped(job, account, answer, "".join(text), tuple(ids)):
            if halted and isinstance(event, Halted):
                continue  # the guard has refused already
            see(event)
            yield event
    except BaseException as error:  # cancelled by the client, timed out, or the engine failed: all are accounted for
        if account.checks or not isinstance(error, (Busy, ValueError)):  # else it never became an answer
            await account.audit.settle(account.broken, _outcome(error))
        if isinstance(error, EngineError) and error.__cause__ is not None:
            logger.error("the engine failed", exc_info=error.__cause__, extra={"id": account.id})
        raise


async def _note(account: Account, event: Event) -> None:
    if isinstance(event, Checked):
        account.checked(event.check)
        if event.check.error is not None:
            logger.warning("check failed", extra={"id": account.id, "error": error_kind(event.check.error)})
    elif isinstance(event, Released):
        await account.audit.run(account.released, event)
    elif isinstance(event, Finished):
        await account.audit.run(account.finished, event.answer)


def _stopped(
    job: Job, account: Account, answer: Answer | None, text: str, token_ids: tuple[int, ...]
) -> tuple[Halted, Finished]:
    """The end of an answer whose account could not be kept."""
    verdict = Verdict(True, nan, account.depth, "error", 1)
    if answer is None:
        refused = text + ("\n\n" if text.strip() else "") + job.guard.refusal
        answer = Answer(
            text=refused,
            token_ids=token_ids,
            finish_reason="content_filter",
            verdict=verdict,
            checks=(),
            windows=(),
            prompt_tokens=job.prompt.start,
            prefill_tokens=job.prompt.prefill,
            generated_tokens=len(token_ids),
        )
    answer = replace(answer, finish_reason="content_filter", verdict=verdict)
    return Halted(verdict, job.guard.refusal, 0), Finished(answer)


def _outcome(error: BaseException) -> str:
    if isinstance(error, AnswerTimeout):
        return "timeout"
    if isinstance(error, ShuttingDown):
        return "shutdown"
    return "error" if isinstance(error, Exception) else "cancelled"
