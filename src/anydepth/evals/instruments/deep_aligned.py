"""Make training data that teaches a model to refuse after it has begun to answer: the Deep-Alignment baseline.

Qi et al., "Safety Alignment Should Be Made More Than Just a Few Tokens Deep": the first tokens of a harmful answer are
put into the model's mouth and a refusal follows; the loss is on the refusal alone. Harmless answers are mixed in, so
that the model does not learn to refuse everything.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from anydepth.conversations.dataset import Conversation
from anydepth.errors import ConfigError
from anydepth.evals.instruments.tuning import LEAST_ANSWER, TrainingExample, end_of_turn, example

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I can't help with this: it could lead to somebody being hurt.",
    "I won't continue with this. What is asked for could do serious harm.",
    "I'm sorry, but I have to stop here. I can't assist with something that could harm people.",
    "I can't provide this. If there is a safe purpose behind it, tell me and I'll gladly help with that.",
    "I'm not able to help with that, because it could put people in danger.",
)
"""What the model is to say, in several wordings, so that it learns to refuse and not a sentence."""


@dataclass(frozen=True, slots=True)
class RecoveryOptions:
    """What the model is shown.

    Attributes:
        deepest: Tokens of a harmful answer before the refusal, at most.
        at_once: Share of the refusals that come at once, without any token of an answer (Qi et al.: a half).
        harmless: Harmless answers for each refusal.
        longest: Tokens of an example with a refusal at most.
        longest_harmless: Tokens of an example with a harmless answer at most.
        seed: Of the depths and the wordings.
    """

    deepest: int = 48
    at_once: float = 0.5
    harmless: float = 1.0
    longest: int = 112
    longest_harmless: int = 72
    seed: int = 0

    def __post_init__(self) -> None:
        if self.deepest < 1:
            raise ConfigError(f"deepest is {self.deepest}; give at least 1 token, or nothing is recovered from")
        if not 0 <= self.at_once < 1:
            raise ConfigError(f"at_once is {self.at_once}; give a share from 0 to below 1")
        if self.harmless <= 0:
            raise ConfigError(f"harmless is {self.harmless}; without harmless answers the model learns to refuse all")


def recovery(
    backend: "TransformersBackend", row: Conversation, refusal: str, depth: int, longest: int
) -> TrainingExample | None:
    """The first `depth` tokens of the answer in `row`, then `refusal`; None if that is longer than `longest`."""
    if depth:
        answer = backend.template.prompt([*row.messages], prefill=row.response)
        start = answer.start + min(depth, answer.prefill)
        said = backend.tokenizer.encode(f" {refusal}", add_special_tokens=False)
        ids = (*answer.ids[:start], *said, end_of_turn(backend))
    else:
        whole = backend.template.prompt([*row.messages], prefill=refusal)
        start, ids = whole.start, (*whole.ids, end_of_turn(backend))
    return TrainingExample(ids, start) if len(ids) <= longest else None


def recoveries(
    backend: "TransformersBackend",
    harmful: Iterable[Conversation],
    harmless: Iterable[Conversation],
    options: RecoveryOptions,
    count: int,
) -> list[TrainingExample]:
    """`count` refusals, and harmless answers beside them.

    Raises:
        ConfigError: There are too few conversations that fit.
    """
    rng = np.random.default_rng(options.seed)
    refusals = []
    for row in harmful:
        depth = 0 if rng.random() < options.at_once else int(rng.integers(1, options.deepest + 1))
        wording = REFUSALS[int(rng.integers(len(REFUSALS)))]
        if len(refusals) < count and (found := recovery(backend, row, wording, depth, options.longest)):
            refusals.append(found)
    wanted = round(options.harmless * count)
    answers = [found for row in harmless if (found := example(backend, row, options.longest_harmless))][:wanted]
    _enough(refusals, count, "harmful", options.longest)
    _enough(answers, wanted, "harmless", options.longest_harmless)
    return [*refusals, *answers]


def _enough(found: Sequence[TrainingExample], wanted: int, what: str, longest: int) -> None:
    if len(found) < wanted:
        raise ConfigError(
            f"{len(found)} {what} conversations fit into {longest} tokens, {wanted} are wanted (with {LEAST_ANSWER} "
            "tokens of answer or a refusal); give more, longer examples, or ask for fewer"
        )
