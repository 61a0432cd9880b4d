"""Serve a model behind an API: one guarded stream an answer, several at once, each with a thread for itself."""

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, cast

from anydepth.apis.answer_handle import AnswerHandle
from anydepth.apis.api_backend import ApiBackend
from anydepth.audit.answer import Account
from anydepth.config import GuardConfig
from anydepth.errors import BadRequest, ConfigError, ProviderError
from anydepth.guard import Guard
from anydepth.provider_errors import KeyRefused, ProviderBusy, ProviderTimeout, RequestRejected
from anydepth.server.engine.engine import (
    EngineFacts,
    EngineStats,
    Job,
    Sampling,
    UpstreamBusy,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
)
from anydepth.server.engine.upstream_template import UpstreamTemplate, ungated
from anydepth.server.engine.works import Works, scanning
from anydepth.templates.proposed_call import CallPrompt
from anydepth.templates.template import ChatTemplate, Prompt
from anydepth.types import Event, GateVerdict, Halted, ScanResult

logger = logging.getLogger(__name__)

_REASON = 300
"""Characters of an upstream's reason that a client gets to read."""


class ApiEngine:
    """Implements `Engine` over a guard on an `ApiBackend`.

    A check that fails because the provider fails ends an answer with an error, and not with a refusal, wherever the
    guard would halt it: in both cases nothing more leaves.

    Args:
        guard: The guard; the trial of its backend was made when it was built.
        model: Name that clients use.
        live: Answers at the same time; each has a stream, and a look-ahead at times.
        queue: Answers that may wait.
        timeout: Seconds that an answer may take, waiting included.

    Raises:
        ConfigError: The guard's backend is another one.
    """

    def __init__(self, guard: Guard, *, model: str, live: int = 16, queue: int = 32, timeout: float = 300) -> None:
        backend = guard.backend
        if not isinstance(backend, ApiBackend):
            raise ConfigError(f"the guard is over a {type(backend).__name__}; give one over an ApiBackend")
        template = cast("ChatTemplate", UpstreamTemplate(backend))
        self.facts = EngineFacts(model, template, guard.config, frozenset(), prefill=backend.capability == "raw")
        self.on_check: Callable[[float], None] = lambda seconds: None
        self._guard, self._backend = guard, backend
        self._works = Works(live, queue, timeout, threads=live)

    @property
    def ready(self) -> bool:
        """True if it can take answers: until it is stopped."""
        return self._works.ready

    @property
    def stats(self) -> EngineStats:
        """Answers under way and waiting."""
        return self._works.stats

    def report(self) -> dict[str, Any]:
        """What the provider was asked so far, and what that cost; see `ApiBackend.report`."""
        return self._backend.report()

    async def start(self) -> None:
        """Do nothing: threads start with the first answers."""

    async def stop(self) -> None:
        """End the threads and log what the provider was asked; answers under way get ShuttingDown."""
        await self._works.stop()
        logger.info("what the upstream was asked", extra=self.report())

    def abort(self) -> None:
        """Give every answer under way ShuttingDown, now, and close its stream."""
        self._works.abort()

    async def submit(self, job: Job, account: Account | None = None) -> AsyncGenerator[Event, None]:
        """Generate one answer; see `Engine.submit`. Closing the iterator closes the provider's stream.

        Raises:
            BadRequest: The provider does not take an option, which is named.
            UpstreamError: The provider failed, in the answer or in a check of it.
        """
        handle = AnswerHandle()
        guard = self._held(job.guard, handle)
        turns = guard.turns(
            [job.prompt],
            max_new_tokens=job.max_new_tokens,
            seed=job.sampling.seed,
            accounts=[account],
            on_check=lambda seconds: self.on_check(seconds),
            **upstream_options(job.sampling, self._backend.options),
        )
        try:
            async with aclosing(self._works.run(turns, handle.cut)) as events:
                async for event in events:
                    if isinstance(event, Halted):
                        _raise_failure(event.verdict.reason, handle.failure)
                    yield event
        except ProviderError as error:
            raise told_to_clients(error) from error

    async def scan(self, prompt: Prompt, guard: GuardConfig) -> ScanResult:
        """Check a finished answer, one look-ahead per scheduled depth; UpstreamError if one of them fails."""
        handle = AnswerHandle()
        try:
            turns = scanning(self._held(guard, handle), prompt)
            async with aclosing(self._works.run(turns, handle.cut, what="scan")) as results:
                result: ScanResult = await anext(results)
            if result.verdict.halt:
                _raise_failure(result.verdict.reason, handle.first_failure)
        except ProviderError as error:
            raise told_to_clients(error) from error
        return result

    async def gate(self, call: CallPrompt, guard: GuardConfig, *, control: bool = True) -> GateVerdict:
        """Refuse, BadRequest: `UpstreamTemplate.call_prompt` has done so before."""
        raise ungated()

    def _held(self, config: GuardConfig, handle: AnswerHandle) -> Guard:
        """The guard for one answer, whose requests `handle` can end."""
        guard = self._guard.with_config(config)
        guard.backend = self._backend.held_by(handle)
        return guard


def upstream_options(sampling: Sampling, taken: frozenset[str]) -> dict[str, Any]:
    """The sampling options by the provider's names for them, without the seed.

    Args:
        sampling: What the client asks for.
        taken: Names of the options that the provider takes.

    Raises:
        BadRequest: The provider does not take one of them; the error names it.
    """
    given: dict[str, Any] = {name: getattr(sampling, name) for name in _DRAWN}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if name not in taken:
            raise BadRequest(
                f"{name} is {value!r}, which the upstream does not take; leave it out", name, "unsupported"
            )
    given.pop("seed", None)
    if sampling.stop:
        given["stop" if "stop" in taken else "stop_sequences"] = list(sampling.stop)
    return given


_DRAWN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")


def told_to_clients(error: ProviderError) -> UpstreamError:
    """What a client is told of a provider's failure."""
    if isinstance(error, ProviderBusy):
        return UpstreamBusy("the upstream is busy; ask again later", error.retry_after)
    if isinstance(error, ProviderTimeout):
        return UpstreamTimeout("the upstream was silent for too long; ask again later")
    if isinstance(error, RequestRejected):
        return UpstreamRejected(f"the upstream does not accept the request: {str(error.__cause__ or error)[:_REASON]}")
    if isinstance(error, KeyRefused):
        return UpstreamError("the upstream refuses this server's key; the operator has to give another")
    return UpstreamError("the upstream failed or broke off; ask again later")


def _raise_failure(reason: str, failure: ProviderError | None) -> None:
    """Raise what the provider is to blame for where a guard halts because a check failed."""
    if reason == "error" and failure is not None:
        raise failure
