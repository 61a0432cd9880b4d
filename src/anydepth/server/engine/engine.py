"""What the server and its engine tell each other."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from anydepth.config import GuardConfig
from anydepth.errors import AnydepthError
from anydepth.templates.template import ChatTemplate, Prompt


class EngineError(AnydepthError):
    """The engine failed while it answered; nothing that was not checked has left."""


class ShuttingDown(EngineError):
    """The server is being stopped and the time to finish is over."""


class AnswerTimeout(EngineError):
    """The answer took longer than the operator allows."""


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
        grammar: What `EngineFacts.compile_grammar` gave, for an answer that is held to it and leaves as a whole, once
            it has ended without a halt; None for a free one.
    """

    prompt: Prompt
    guard: GuardConfig
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    grammar: Any = None


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
    """

    model: str
    template: ChatTemplate
    guard: GuardConfig
    end_token_ids: frozenset[int]
    context_length: int | None = None
    compile_grammar: Callable[[str], Any] | None = None
