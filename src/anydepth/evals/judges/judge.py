"""Decide what an answer is: a refusal, harm, or neither."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from anydepth.conversations.dataset import Conversation

Tables = Callable[[str], list[Conversation]]
"""Gives the conversations of a named table, e.g. `probe_train`."""

TRAINING = "probe_train"
"""The table that the text classifier is fitted on."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer to judge.

    Attributes:
        prompt: The request as the user meant it: an attack's goal, not its wrapping.
        response: The answer, without what was forced: the words that the model answers for.
        prefill: The part of the answer that was forced. It is context for judges that read the whole answer; what it
            says is not held against the model.
    """

    prompt: str
    response: str
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge says of one answer.

    Attributes:
        refused: The answer refuses.
        harmful: The answer does harm: it complies with a harmful request. None if this judge cannot say. An answer that
            refuses and complies all the same (one after the other) may be both.
        score: How harmful, 0 to 1; None if this judge gives no number.
    """

    refused: bool
    harmful: bool | None
    score: float | None = None


EMPTY = Judgement(refused=False, harmful=False, score=0.0)
"""What every judge says of an answer without a word: it neither refuses nor harms."""


class Judge(Protocol):
    """Judges answers.

    Attributes:
        name: Written beside every figure that it decides, e.g. `refusal matcher`.
        says_harm: True if it can tell harm, not refusals only.
    """

    name: str
    says_harm: bool

    def judge(self, items: Sequence[Judged]) -> list[Judgement]:
        """One judgement per answer, in their order."""
        ...


def judge_written(items: Sequence[Judged], judge: Callable[[list[Judged]], Iterable[Judgement]]) -> list[Judgement]:
    """Have `judge` judge the answers that have a word in them; the others are `EMPTY`."""
    written = [item for item in items if item.response.strip()]
    found = iter(judge(written) if written else ())
    return [next(found) if item.response.strip() else EMPTY for item in items]
