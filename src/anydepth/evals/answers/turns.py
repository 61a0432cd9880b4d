"""Compose conversations of several turns from stored answers to single prompts."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from anydepth.conversations.dataset import Conversation
from anydepth.evals.answers.sets import spread
from anydepth.evals.answers.stored import stored
from anydepth.evals.context import Context
from anydepth.evals.transcript import Transcript

TURNS = (1, 2, 4)
"""In which turn the harm, or the change of topic, comes."""

CASES: Mapping[str, str] = {
    "benign": "a harmless answer in turn n, harmless turns before it",
    "harm": "a harmful answer in turn n, harmless turns before it",
    "benign after harm": "a harmless answer in the turn after a harmful one that went through",
    "benign after halt": "a harmless answer in the turn after a halted one, of which the history holds the refusal",
    "harm after halt": "another harmful answer in the turn after a halted one",
}
HARMFUL = ("harm", "harm after halt")
"""Cases that are to be halted; a halt in the others is a false one."""

_WORDS = 60


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer in its conversation.

    Attributes:
        case: A name of `CASES`.
        n: Number of the turn in which the harm, or the harmless answer of the case `benign`, comes; from 1.
        conversation: Number of the composition: cases with the same number use the same answers.
        transcript: The answer that is checked, its prompt holding the turns before it.
    """

    case: str
    n: int
    conversation: int
    transcript: Transcript


@dataclass(frozen=True, slots=True)
class _Parts:
    """What one conversation is composed of."""

    before: Sequence[Conversation]
    benign: Conversation
    harm: Conversation
    more_harm: Conversation


def compose(context: Context, *, count: int, scan_tokens: int) -> list[Turn]:
    """`count` conversations in each case.

    `benign` and `harm` are made with every n of `TURNS`; the cases after them with one n each, all n in turn.
    """
    found = []
    for number, parts in enumerate(_parts(context, count)):
        for case, n, messages, row in _cases(number, parts, context.config.refusal):
            whole = replace(row, messages=(*messages, *row.messages))
            found.append(Turn(case, n, number, stored(context, f"{case}|{n}|{number}", whole, scan_tokens)))
    return found


def _cases(number: int, parts: _Parts, refusal: str) -> Iterator[tuple[str, int, list[dict[str, Any]], Conversation]]:
    for n in TURNS:
        history = [message for row in parts.before[: n - 1] for message in exchange(row)]
        yield "benign", n, history, parts.benign
        yield "harm", n, history, parts.harm
    n = TURNS[number % len(TURNS)]
    history = [message for row in parts.before[: n - 1] for message in exchange(row)]
    through, halted = [*history, *exchange(parts.harm)], [*history, *exchange(parts.harm, refusal)]
    yield "benign after harm", n, through, parts.benign
    yield "benign after halt", n, halted, parts.benign
    yield "harm after halt", n, halted, parts.more_harm


def exchange(row: Conversation, answer: str | None = None) -> list[dict[str, Any]]:
    """The messages of one turn of the history: the prompt, and `answer` or the beginning of the stored answer."""
    return [*map(dict, row.messages), {"role": "assistant", "content": answer or beginning(row.response)}]


def beginning(text: str, words: int = _WORDS) -> str:
    """The first sentences of `text`, about `words` words; a single longer sentence is cut."""
    short = " ".join(text.split(" ")[:words])
    if short == text:
        return text
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)", short)]
    return short[: ends[-1]] if ends else short


def _parts(context: Context, count: int) -> Iterator[_Parts]:
    """Different answers for each place, as far as the tables reach; the same in every run."""
    before = context.table("responses_xstest", unseen=True)
    benign = context.table("pairs_benign_validation", label="benign", unseen=True)
    harmful = context.table("pairs_deep_validation", label="harmful", unseen=True)
    targets = spread(benign, count, lambda row: row.source)
    taken = {row.prompt_key for row in targets}
    rest = [row for row in (*before, *benign) if row.prompt_key not in taken]
    history = spread(rest or before, len(before) + len(benign), lambda row: row.source)
    harms = spread(harmful, 2 * count, lambda row: row.source)
    deepest = TURNS[-1] - 1
    for number in range(count):
        yield _Parts(
            before=[history[(number * deepest + place) % len(history)] for place in range(deepest)],
            benign=targets[number % len(targets)],
            harm=harms[number % len(harms)],
            more_harm=harms[(number + len(harms) // 2) % len(harms)],
        )
