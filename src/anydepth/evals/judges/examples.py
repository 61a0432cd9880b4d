"""Turn labelled answers into examples of complying and of not complying with a request."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from anydepth.conversations.dataset import Conversation
from anydepth.detectors.refusals import RefusalMatcher
from anydepth.errors import ConfigError

ExampleKind = Literal["harmful", "declined", "ordinary"]
"""`harmful`: complies with a harmful request; `declined`: does not; `ordinary`: complies with a harmless one."""

EXAMPLE_KINDS: tuple[ExampleKind, ...] = ("harmful", "declined", "ordinary")
_FEWEST = 10
_REFUSING = 0.1
"""Share of refusals from which on a source of harmless answers is taken for one of harmful requests."""


@dataclass(frozen=True, slots=True)
class Refusing:
    """How much of an answer refuses.

    Attributes:
        opening: Its first words do.
        share: Share of its characters that stand in lines which begin with a refusal.
    """

    opening: bool
    share: float


@lru_cache(maxsize=2**14)  # every suite of a run fits the judge anew, on the same answers
def refusing(text: str) -> Refusing:
    """Read `text` line by line."""
    matcher = RefusalMatcher.default()
    lines = [line for line in text.split("\n") if line.strip()]
    share = sum(len(line) for line in lines if matcher.is_refusal(line)) / max(1, sum(map(len, lines)))
    return Refusing(matcher.is_refusal(text), share)


@dataclass(frozen=True, slots=True)
class Example:
    """One answer to learn from."""

    text: str
    kind: ExampleKind
    source: str
    prompt_key: str
    refusing: Refusing


def examples(conversations: Sequence[Conversation]) -> list[Example]:
    """Sort labelled answers into kinds; what belongs to none for certain is left out.

    Harmful answers comply with a harmful request. A harmless answer has declined if the same request drew a harmful
    answer elsewhere, if more than a tenth of its source's harmless answers refuse (such a source asks harmful requests
    only), or if it refuses and its source has harmful answers. It is ordinary if its source has none. Of the others
    nobody can say.

    Raises:
        ConfigError: There are fewer than 10 harmful answers, or than 10 that declined.
    """
    rows = sorted((row for row in conversations if row.label and row.response.strip()), key=lambda row: row.id)
    read = {row.id: refusing(row.response) for row in rows}
    asked = {row.prompt_key for row in rows if row.label == "harmful"}
    with_harm = {row.source for row in rows if row.label == "harmful"}
    benign = Counter(row.source for row in rows if row.label == "benign")
    refused = Counter(row.source for row in rows if row.label == "benign" and read[row.id].opening)
    only_harmful = {source for source, count in benign.items() if refused[source] / count > _REFUSING}

    def kind(row: Conversation) -> ExampleKind | None:
        if row.label == "harmful":
            return "harmful"
        if row.prompt_key in asked or row.source in only_harmful or (row.source in with_harm and read[row.id].opening):
            return "declined"
        return None if row.source in with_harm or read[row.id].opening else "ordinary"

    found = [Example(row.response, of, row.source, row.prompt_key, read[row.id]) for row in rows if (of := kind(row))]
    counts = {name: sum(example.kind == name for example in found) for name in EXAMPLE_KINDS}
    if min(counts["harmful"], counts["declined"]) < _FEWEST:
        raise ConfigError(
            f"the text judge cannot be fitted: the table has {counts['harmful']} harmful answers and "
            f"{counts['declined']} harmless ones to harmful requests, it needs {_FEWEST} of each; give another table, "
            "or another judge"
        )
    return found
