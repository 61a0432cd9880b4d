"""Serve a Transformers model: one answer a session, the sessions take turns window by window."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from anydepth.audit.answer import Account
from anydepth.config import GuardConfig
from anydepth.guard import Guard
from anydepth.server.answer.stops import StopText
from anydepth.server.engine.engine import EngineFacts, EngineStats, Job
from anydepth.server.engine.works import Works, gating, scanning
from anydepth.templates.proposed_call import CallPrompt
from anydepth.templates.template import Prompt
from anydepth.types import Event, GateVerdict, ScanResult

GREEDY_BELOW = 0.01
"""Temperatures under this are greedy: dividing the scores by less overflows in half precision."""


class TransformersEngine:
    """Generates guarded answers.

    Attributes:
        facts: What does not change while it runs.
        on_check: Called with the seconds that each check took; the server sets it.

    Args:
        guard: The guard, its model loaded.
        model: Name that clients use.
        live: Answers generated at the same time.
        queue: Answers that may wait.
        timeout: Seconds that an answer may take, waiting included.
        end_token_ids: Tokens that end a turn, where the backend does not say.
        keep: Whether caches of answers that have ended are kept for gates, in the room that live ones leave.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        model: str,
        live: int = 4,
        queue: int = 32,
        timeout: float = 300,
        end_token_ids: frozenset[int] | None = None,
        keep: bool = True,
    ) -> None:
        backend: Any = guard.backend
        ends = end_token_ids if end_token_ids is not None else backend.end_tokens({})
        context = getattr(backend, "context_length", None)
        compile_grammar = getattr(backend, "grammar", None)
        self.facts = EngineFacts(model, guard.template, guard.config, frozenset(ends), context, compile_grammar)
        self.on_check: Callable[[float], None] = lambda seconds: None
        if (kept := getattr(backend, "kept", None)) is not None:
            kept.room = live if keep else 0
        self._guard, self._works = guard, Works(live, queue, timeout)

    @property
    def ready(self) -> bool:
        """True if it can take answers: until it is stopped."""
        return self._works.ready

    @property
    def stats(self) -> EngineStats:
        """Answers under way and waiting."""
        return self._works.stats

    async def start(self) -> None:
        """Do nothing: the model is loaded, and its thread starts with the first answer."""

    async def stop(self) -> None:
        """End the thread; answers under way get ShuttingDown."""
        await self._works.stop()

    def abort(self) -> None:
        """Give every answer under way ShuttingDown, now."""
        self._works.abort()

    def submit(self, job: Job, account: Account | None = None) -> AsyncGenerator[Event, None]:
        """Generate one answer: `Checked`, `Released`, at most one `Halted`, and `Finished` last.

        What is released is written into `account` before it leaves; where it cannot be, the answer is halted.
        Closing the iterator frees the work at the next window. Raises, before the first event, ConfigError or
        PromptError for a job that cannot be done and Busy for one that the queue has no room for; EngineError if the
        engine fails.
        """
        guard = self._guard.with_config(job.guard)
        turns = guard.turns(
            [job.prompt],
            max_new_tokens=job.max_new_tokens,
            seed=job.sampling.seed,
            accounts=[account],
            on_check=lambda seconds: self.on_check(seconds),
            whole=job.grammar is not None,
            tells_waits=True,
            call_ends=job.call_ends,
            **_generation(job, guard.backend),
        )
        return self._works.run(turns)

    async def scan(self, prompt: Prompt, guard: GuardConfig) -> ScanResult:
        """Check a finished answer, the prefill of `prompt`, at all its depths; without one, depth 0 only."""
        turns = scanning(self._guard.with_config(guard), prompt)
        async with aclosing(self._works.run(turns, what="scan")) as results:
            return await anext(results)

    async def gate(self, call: CallPrompt, guard: GuardConfig, *, control: bool = True) -> GateVerdict:
        """Judge a proposed tool call by the check right after it; see `Guard.gate`."""
        turns = gating(self._guard.with_config(guard), call, control=control)
        async with aclosing(self._works.run(turns, what="gate")) as results:
            return await anext(results)


def _generation(job: Job, backend: Any) -> dict[str, Any]:
    """The options of Transformers' `generate`; without any of them the model's own settings hold."""
    sampling = job.sampling
    drawn = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "min_p")}
    options: dict[str, Any] = {name: value for name, value in drawn.items() if value is not None}
    if options.get("temperature", 1) < GREEDY_BELOW:
        options = {"do_sample": False}
    elif options:
        options["do_sample"] = True
    if sampling.repetition_penalty is not None:
        options["repetition_penalty"] = sampling.repetition_penalty
    if sampling.stop:
        options["stopping_criteria"] = [StopText(sampling.stop, backend.decode_text)]
    if job.grammar is not None:
        options["grammar"] = job.grammar
    return options
