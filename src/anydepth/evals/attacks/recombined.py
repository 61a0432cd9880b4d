"""Put stored answers under other requests, behind other turns, and between pieces of other answers."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from anydepth.conversations.augment import others_for
from anydepth.conversations.dataset import Conversation
from anydepth.errors import ConfigError
from anydepth.evals.answers.turns import exchange
from anydepth.evals.attacks.disguises import Case, case_of
from anydepth.evals.attacks.interleave import Mixture
from anydepth.evals.context import Context

OWN, HARMLESS = "own request", "harmless request"
"""Under which request an answer stands: the one that it was written for, or one of a harmless conversation."""

TURNS_BEFORE = 2
"""Harmless exchanges before the request of a set-up."""

_PARTS: Mapping[str, tuple[re.Pattern[str], str]] = {
    "sentences": (re.compile(r"(?<=[.!?])(?<!\d\.)\s+|\s*\n\s*"), " "),
    "paragraphs": (re.compile(r"\s*\n\s*\n\s*"), "\n\n"),
}
"""Kind of piece -> what it ends at, and what joins pieces; `1.` at the head of a line does not end a sentence."""


def crossed(
    context: Context, rows: Sequence[Conversation], harmless: Sequence[Conversation], tokens: int
) -> Iterator[Case]:
    """The answers under the request of another conversation, one of `harmless`."""
    for row in rows:
        (other,) = others(context, "crossed", row, harmless, 1)
        yield case_of(context, "crossed", HARMLESS, replace(row, messages=other.messages), tokens)


def set_ups(
    context: Context, rows: Sequence[Conversation], harmless: Sequence[Conversation], tokens: int
) -> Iterator[Case]:
    """The answers behind two exchanges of `harmless`: to their own request, and to one of `harmless`."""
    for row in rows:
        other, *before = others(context, "set-up", row, harmless, TURNS_BEFORE + 1)
        history = [message for each in before for message in exchange(each)]
        for variant, request in ((OWN, row), (HARMLESS, other)):
            messages = (*history, *request.messages)
            yield case_of(context, "set-up", variant, replace(row, messages=messages), tokens)


def interleaved(
    context: Context, rows: Sequence[Conversation], harmless: Sequence[Conversation], tokens: int
) -> Iterator[Case]:
    """Sentences, or paragraphs, of each answer and of one of `harmless` in turn, the other one first.

    They end when either answer is used up. Each mixture stands under the row's own request and under the other's. One
    of which the first `tokens` tokens have nothing of a harmful row is left out.
    """
    for row in rows:
        (other,) = others(context, "interleaved", row, harmless, 1)
        for kind in _PARTS:
            text, ends = _in_turn(kind, other.response, row.response)
            for variant, request in ((OWN, row), (HARMLESS, other)):
                mixed = replace(row, messages=request.messages, response=text)
                case = case_of(context, "interleaved", f"{kind}, {variant}", mixed, tokens)
                if row.label == "harmful":
                    length = len(case.transcript.token_ids)
                    places = token_ends(context, mixed, ends, length)
                    case = replace(case, mixture=_mixture(case.transcript.token_ids, places))
                    if not case.mixture or not any(case.mixture.harmful):
                        continue
                yield case


def others(
    context: Context, purpose: str, row: Conversation, pool: Sequence[Conversation], count: int
) -> list[Conversation]:
    """`count` conversations of `pool` with answers, of different requests and none that of `row`.

    They are chosen as training chooses the request of a swapped answer (`others_for`), with the run's seed.

    Raises:
        ConfigError: The pool has fewer.
    """
    answered = [each for each in pool if each.response]
    try:
        return others_for(row, answered, answered, turns=count, name=f"{context.options.seed}/{purpose}")
    except ConfigError as error:
        raise ConfigError(
            f"suite {context.suite}: {purpose!r} needs {count} harmless answers to other requests beside each answer: "
            f"{error}; here they come from the table pairs_benign_validation, give a larger one"
        ) from error


def pieces_of(kind: str, text: str) -> list[str]:
    """The sentences or the paragraphs of `text`, without what stands between them; `kind` is either word."""
    return [piece.strip() for piece in _PARTS[kind][0].split(text) if piece.strip()]


def token_ends(context: Context, row: Conversation, ends: Sequence[int], length: int) -> list[int]:
    """How many tokens of the answer of `row` stand before each place `ends` of its text; never more than `length`.

    Places are numbers of characters and rise. A token across a place counts as before it.
    """
    found: list[int] = []
    for end in ends:
        behind = found[-1] if found else 0
        reached = behind if behind == length else context.prompt(row, prefill=row.response[:end]).prefill
        found.append(min(length, max(behind, reached)))
    return found


def _in_turn(kind: str, first: str, second: str) -> tuple[str, list[int]]:
    """Pieces of two texts in turn, and the place behind each piece."""
    between = _PARTS[kind][1]
    pairs = zip(pieces_of(kind, first), pieces_of(kind, second), strict=False)
    pieces = [piece for pair in pairs for piece in pair]
    ends = list(accumulate(len(piece) for piece in pieces))
    return between.join(pieces), [end + place * len(between) for place, end in enumerate(ends)]


def _mixture(token_ids: tuple[int, ...], ends: Sequence[int]) -> Mixture:
    """Which tokens are of every second piece."""
    marks: list[bool] = []
    for number, end in enumerate(ends):
        marks += [number % 2 == 1] * (end - len(marks))
    return Mixture(token_ids, tuple(marks))
