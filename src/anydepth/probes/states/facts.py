"""Say what the data says of an answer beside its text: label, source, split."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from anydepth.conversations.dataset import Conversation

UNKNOWN = ""
"""The label of an answer that has none, or that has both."""


@dataclass(frozen=True, slots=True)
class AnswerFacts:
    """What the data says of one answer: it decides what the answer is used for, and none of its states.

    Attributes:
        id: The conversation's own id.
        split: `train`, or the name of a held-out set.
        source: Source key of the data.
        label: `harmful` or `benign`, empty if it is not known.
        licence: Licence of the data.
        prompt_key: Digest of the normalised prompt: splits are made by it.
    """

    id: str
    split: str
    source: str
    label: str
    licence: str
    prompt_key: str

    @classmethod
    def of(cls, conversation: Conversation, split: str) -> "AnswerFacts":
        """What is said of `conversation`, which is used as `split`."""
        label = conversation.label or UNKNOWN
        return cls(conversation.id, split, conversation.source, label, conversation.licence, conversation.prompt_key)


FACTS = tuple(each.name for each in fields(AnswerFacts))
"""Names of the facts, in their order."""


def facts_by_answer(found: Iterable[tuple[str, AnswerFacts]]) -> dict[str, AnswerFacts]:
    """Answer key -> its facts, of pairs of both.

    Of an answer that occurs several times the first facts count. Its label is that of all its occurrences that have
    one; it is not known if they contradict each other: which of them is right, nobody can say.
    """
    first: dict[str, AnswerFacts] = {}
    labels: dict[str, set[str]] = {}
    for key, facts in found:
        first.setdefault(key, facts)
        labels.setdefault(key, set()).update({facts.label} - {UNKNOWN})
    known = {key: each.pop() if len(each) == 1 else UNKNOWN for key, each in labels.items()}
    return {key: replace(facts, label=known[key]) for key, facts in first.items()}
