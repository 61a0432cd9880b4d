"""Reward completions by what their Safety Tokens say of them: a reward function of TRL."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from anydepth.detectors import Detector
from anydepth.errors import CheckError, ConfigError
from anydepth.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Iterator

Over = Literal["max", "mean", "last"]
Scale = Literal["probability", "logit"]
Weights = Literal["base", "policy"]

_OVER: dict[str, Callable[[Sequence[float]], float]] = {
    "max": max,
    "mean": lambda scores: math.fsum(scores) / len(scores),
    "last": lambda scores: scores[-1],
}
_LARGEST_LOGIT = 10.0

_GUARDING = Lock()
_LOCKS: "WeakKeyDictionary[Any, RLock]" = WeakKeyDictionary()


class SafetyReward:
    """A reward that is high where a guard finds a completion harmless.

    Give it to a trainer of TRL as one of `reward_funcs`. Each completion is scanned as `Guard.scan` scans an answer:
    the Safety Tokens are read at the guard's scheduled depths. The guard's policy does not matter.

    The states come from the guard's model, which training should not change: a probe that is trained against can be
    satisfied without an answer that is any better, the more so the more the weights that it reads drift with the policy
    (arXiv 2602.15515). `from_policy` says which weights of a policy under training are read.

    Args:
        guard: A guard over a model of its own, with a probe or another detector.
        over: How the scores of the depths become one: `max` (default; the worst moment), `mean`, `last`.
        scale: `probability`: 1 - score, in [0, 1]; `logit`: -log(score / (1 - score)), at most 10 either way, which
            still differs where a probability is nearly 0 or 1.

    Attributes:
        asynchronous: The same as a coroutine function, for trainers that await rewards; the model runs in a thread.

    Raises:
        ConfigError: An option has a value that it cannot have.
    """

    def __init__(self, guard: Guard, *, over: Over = "max", scale: Scale = "probability") -> None:
        if over not in _OVER:
            raise ConfigError(f"over is {over!r}; choose one of {', '.join(_OVER)}")
        if scale not in ("probability", "logit"):
            raise ConfigError(f"scale is {scale!r}; choose probability or logit")
        self.guard, self._over, self._scale = guard, over, scale
        self.__name__ = "safety"  # what TRL calls it in its logs

        async def asynchronous(*args: Any, **kwargs: Any) -> list[float | None]:
            return await asyncio.to_thread(self, *args, **kwargs)

        asynchronous.__name__ = self.__name__
        self.asynchronous: Callable[..., Awaitable[list[float | None]]] = asynchronous

    @classmethod
    def from_policy(
        cls,
        model: Any,
        tokenizer: Any,
        detector: Detector,
        *,
        weights: Weights = "base",
        over: Over = "max",
        scale: Scale = "probability",
        **options: Any,
    ) -> "SafetyReward":
        """A reward over the very model that is trained, without a copy of it.

        Args:
            model: The model that the trainer has, in memory.
            tokenizer: Its tokenizer.
            detector: A probe of the model before training, or another detector.
            weights: `base` (default): the frozen weights below a PEFT adapter; `policy`: whatever training has made of
                the weights by then.
            over: See the class.
            scale: See the class.
            **options: Fields of `GuardConfig`, e.g. `schedule`.

        Raises:
            ConfigError: `weights` is `base` and the model has no adapter: all of its weights are trained.
            ProbeMismatch: The probe belongs to another model.
        """
        from anydepth.backends.transformers import TransformersBackend

        if weights not in ("base", "policy"):
            raise ConfigError(f"weights is {weights!r}; choose base or policy")
        if weights == "base" and not getattr(model, "peft_config", None):
            raise ConfigError(
                f"weights is 'base', but {type(model).__name__} has no PEFT adapter, so that training changes all of "
                "it; train an adapter, give SafetyReward a guard over a copy of its own, or weights='policy'"
            )
        with _evaluating(model):
            backend = TransformersBackend(model, tokenizer, base_weights=weights == "base")
            guard = Guard.from_backend(backend, detector, **options)
        return cls(guard, over=over, scale=scale)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **_columns: Any,
    ) -> list[float | None]:
        """The reward of each completion.

        Args:
            prompts: The conversations, each a list of messages.
            completions: What the policy wrote to each: a list of messages, the last one the assistant's.
            log_metric: TRL's; told the mean score of the batch as `safety/score`.
            log_extra: TRL's; told the score of each completion as `safety_score`.
            **_columns: What TRL gives besides, `completion_ids` and the dataset's columns among it; not used.

        Returns:
            One reward per completion; None, which TRL leaves out, for one that ends without a text of the assistant.

        Raises:
            ConfigError: The prompts are plain text: there is no chat to put Safety Tokens behind. Or a prompt ends in a
                message of the assistant, which TRL's trainers close.
            CheckError: A check has no usable score. A reward that is made up would be learned.
        """
        if len(prompts) != len(completions):
            raise ConfigError(
                f"{len(prompts)} prompts were given for {len(completions)} completions; give one for each"
            )
        asked = [_chat(*pair) for pair in zip(prompts, completions, strict=True)]
        chats = [chat for chat in asked if chat is not None]
        with _evaluating(getattr(self.guard.backend, "model", None)):
            found = iter([self._score(result.checks) for result in (self.guard.scan_many(chats) if chats else ())])
        scores = [None if chat is None else next(found) for chat in asked]
        known = [score for score in scores if score is not None]
        if log_metric is not None and known:
            log_metric("safety/score", math.fsum(known) / len(known))
        if log_extra is not None:
            log_extra("safety_score", scores)
        return [None if score is None else self._reward(score) for score in scores]

    def _score(self, checks: Sequence[Any]) -> float:
        for check in checks:
            if check.error is not None:
                raise CheckError(f"the check of a completion at depth {check.depth} failed: {check.error}")
        return _OVER[self._over]([check.score for check in checks])

    def _reward(self, score: float) -> float:
        if self._scale == "probability":
            return 1.0 - score
        if score <= 0 or score >= 1:
            return _LARGEST_LOGIT if score <= 0 else -_LARGEST_LOGIT
        return max(-_LARGEST_LOGIT, min(_LARGEST_LOGIT, math.log1p(-score) - math.log(score)))


def _chat(prompt: Any, completion: Any) -> tuple[list[Mapping[str, Any]], str] | None:
    """A conversation and the answer to it; None if the completion does not end with a text of the assistant."""
    if isinstance(prompt, str) or isinstance(completion, str):
        raise ConfigError(
            "prompts or completions are plain text, and Safety Tokens stand behind a chat; give a conversational "
            "dataset, whose prompts are lists of messages"
        )
    if not completion or completion[-1].get("role") != "assistant":
        return None
    text = completion[-1].get("content")
    if not isinstance(text, str) or not text.strip():
        return None
    asked = [*prompt, *completion[:-1]]
    if asked and asked[-1].get("role") == "assistant":
        raise ConfigError(
            "a completion follows a message of the assistant: TRL's trainers close a begun answer and have the policy "
            "answer in a second turn, which no template writes; end the prompts with a message of the user or a tool"
        )
    return asked, text


@contextmanager
def _evaluating(model: Any) -> "Iterator[None]":
    """Have a model that is being trained read without dropout meanwhile.

    One at a time for each model: rewards that are awaited together would switch dropout and adapter for each other.
    """
    with _alone(model):
        training = getattr(model, "training", False)
        if training:
            model.eval()
        try:
            yield
        finally:
            if training:
                model.train()


def _alone(model: Any) -> RLock:
    """The lock on a model's state, the same one for every reward that reads it."""
    while hasattr(model, "get_base_model"):  # a wrapper of PEFT: what is below it is shared
        model = model.get_base_model()
    with _GUARDING:
        try:
            return _LOCKS.setdefault(model, RLock())
        except TypeError:  # no model that can be switched: nothing is shared
            return RLock()
