"""Read the log-probabilities of tokens that an endpoint of OpenAI's form gives beside a reply."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from anydepth.apis.provider import TokenTexts

NO_LOGPROBS = "the provider gives no log-probabilities of the tokens that it writes; use Rethink(mode='look-ahead')"

TOP = 20
"""Most probable tokens that are asked for: the most that OpenAI gives."""

PLACES = 4
"""Tokens of a reply that are asked for: the first may be blank."""


def told_tokens(choice: Any) -> tuple[TokenTexts, ...] | None:
    """The most probable tokens at each place of a choice, of chat or of completions; None if it tells none.

    Chat lists them, one record a token; completions have an object a place, text -> log-probability. The token that
    was written is among them, whether it is one of the most probable or not.
    """
    told = getattr(choice, "logprobs", None)
    if told is None:
        return None
    if (content := getattr(told, "content", None)) is not None:
        records = [(place, *(place.top_logprobs or ())) for place in content]
        return tuple(_numbers((each.token, each.logprob) for each in record) for record in records)
    if (places := getattr(told, "top_logprobs", None)) is None:
        return None
    own = zip(told.tokens or (), told.token_logprobs or (), strict=False)
    return tuple(_numbers([*(top or {}).items(), written]) for top, written in zip(places, own, strict=False))


def first_visible(places: Sequence[TokenTexts]) -> TokenTexts:
    """The first place whose most probable token is no mere space; the last one if there is none, empty without any."""
    for place in places:
        if place and max(place, key=place.__getitem__).strip():
            return place
    return places[-1] if places else {}


def _numbers(tokens: Iterable[tuple[str, Any]]) -> TokenTexts:
    """Log-probabilities by text; one that is no number is left out, and a token that is told twice counts once."""
    return {token: value for token, value in tokens if isinstance(value, int | float) and not math.isnan(value)}
