"""What the server and its engine tell each other."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from anydepth.audit.answer import Account
from anydepth.config import GuardConfig
from anydepth.errors import AnydepthError
from anydepth.gate import CallEnds
from anydepth.templates.proposed_call import CallPrompt
from anydepth.templates.template import ChatTemplate, Prompt
from anydepth.types import Event, GateVerdict, ScanResult


class EngineError(AnydepthError):
    """The engine failed while it answered; nothing that was not checked has left."""


class ShuttingDown(EngineError):
    """The server is being stopped and the time to finish is over."""


class AnswerTimeout(EngineError):
    """The answer took longer than the operator allows."""


class UpstreamError(EngineError):
    """The upstream of a proxy failed, or broke off; nothing that was not checked has left.

    Messages of these errors go to clients. They have no text of the upstream, which may name its operator's account;
    that is the cause, which is logged.
    """


class UpstreamTimeout(UpstreamError):
    """The upstream was silent for too long."""


class UpstreamBusy(UpstreamError):
    """The upstream takes no more requests for now; `retry_after` says in how many seconds to ask again, if it said."""

    def __init__(self, message: str, retry_after: int | None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UpstreamRejected(UpstreamError):
    """The upstream does not accept this client's request; the message has its reason."""


class Busy(AnydepthError):
    """Too many answers wait already; `retry_after` says in how many seconds to ask again."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; None is the model's own setting.

    Attributes:
        temperature: 0 is greedy.
        top_p: Nucleus.
        top_k: Most probable tokens that count; 0 is all.
        min_p: Least probability relative to the most probable token.
        repetition_penalty: 1 is none.
        seed: Repeats a sample.
        stop: Texts that end the answer; they belong to its tokens, not to the text that clients get.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to generate under guard.

    Attributes:
        prompt: What it answers.
        guard: How it is guarded.
        max_new_tokens: Its greatest length in tokens.
        sampling: How its tokens are drawn.
        call_ends: Gates the answer's tool calls: tells after how many tokens of a whole answer each of them ends. None
            gates none.
        grammar: What `EngineFacts.compile_grammar` gave, for an answer that is held to it and leaves as a whole, once
            it has ended without a halt; None for a free one.
    """

    prompt: Prompt
    guard: GuardConfig
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    grammar: Any = None
    call_ends: CallEnds | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine is doing right now."""

    live: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What does not change while an engine runs.

    Attributes:
        model: Name that clients use.
        template: The chat template, with which the server renders prompts.
        guard: How answers are guarded unless a request's overrides say otherwise.
        end_token_ids: Tokens that end a turn; they do not count as depth.
        context_length: Longest sequence, or None if there is no limit.
        compile_grammar: Compiles a grammar in llguidance's variant of Lark, for `Job.grammar`; raises ConfigError for
            one that cannot be used. None where answers cannot be held to one.
        prefill: Whether an answer can go on with a start that the client writes.
    """

    model: str
    template: ChatTemplate
    guard: GuardConfig
    end_token_ids: frozenset[int]
    context_length: int | None = None
    compile_grammar: Callable[[str], Any] | None = None
    prefill: bool = True


class Engine(Protocol):
    """What generates guarded answers for the server.

    Attributes:
        facts: What does not change while it runs.
        on_check: Called with the seconds that each check took; the server sets it.
    """

    facts: EngineFacts
    on_check: Callable[[float], None]

    @property
    def ready(self) -> bool:
        """True if it can take answers: until it is stopped."""
        ...

    @property
    def stats(self) -> EngineStats:
        """Answers under way and waiting."""
        ...

    async def start(self) -> None:
        """Get ready for answers."""
        ...

    async def stop(self) -> None:
        """Take no more answers; those under way get ShuttingDown."""
        ...

    def abort(self) -> None:
        """Give every answer under way ShuttingDown, now."""
        ...

    def submit(self, job: Job, account: Account | None = None) -> AsyncGenerator[Event, None]:
        """Generate one answer: `Checked`, `Released`, at most one `Halted`, and `Finished` last.

        What is released is written into `account` before it leaves. Closing the iterator frees the work.

        Raises:
            ConfigError, PromptError: The job cannot be done; before the first event.
            Busy: There is no room for it; before the first event.
            EngineError: The engine failed.
        """
        ...

    async def scan(self, prompt: Prompt, guard: GuardConfig) -> ScanResult:
        """Check a finished answer, the prefill of `prompt`, at all its depths; without one, depth 0 only."""
        ...

    async def gate(self, call: CallPrompt, guard: GuardConfig, *, control: bool = True) -> GateVerdict:
        """Judge a proposed tool call by the check right after it; see `Guard.gate`."""
        ...
