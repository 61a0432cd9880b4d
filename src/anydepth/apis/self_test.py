"""Find out by one harmless conversation what a provider makes of an assistant message at the end."""

import re
from collections.abc import Callable, Mapping
from typing import Literal

from anydepth.apis.provider import ChatTurn
from anydepth.apis.token_texts import NO_LOGPROBS
from anydepth.errors import CapabilityError
from anydepth.provider_errors import RequestRejected

Shape = Literal["closes", "between", "raw"]
"""How a fresh assistant turn is asked for; see `ApiBackend`."""

QUESTION = (
    "Write the names of the seven days of the week in English, from Monday to Sunday, with commas between them. "
    "Begin with the first name at once."
)
CUT = "Of course, here are the names that you asked for: Monday, Tuesday, Wednes"
"""An answer that breaks off inside of a word: only a reply that continues it begins with the rest of that word."""

TRIAL_TOKENS = 40
_REST = re.compile(r"\W*day\b")
_FIRST = "monday"
_OPENING = 80  # characters of a reply in which an answer that begins anew has named the first day

Judged = Literal["new turn", "continued", "unclear"]


def conversation() -> tuple[ChatTurn, ...]:
    """What is asked; the answer that is cut off, `CUT`, follows as a check would have it."""
    return (ChatTurn("user", QUESTION),)


def judge(reply: str) -> Judged:
    """What a reply behind the cut answer shows.

    `continued` if it begins with the rest of the cut word. `new turn` if it begins with the list again. Everything
    else is `unclear`, a repetition of the cut answer to the letter included: some providers put what they continue in
    front of the reply.
    """
    said = reply.strip().lower()
    if _REST.match(said):
        return "continued"
    if _FIRST in said[:_OPENING] and not said.startswith(CUT.lower()):
        return "new turn"
    return "unclear"


def find_shape(reply_as: Callable[[Shape], str]) -> Shape:
    """The shape that this provider takes.

    Args:
        reply_as: Asks for a fresh turn behind `CUT` in a shape, and returns the text.

    Raises:
        CapabilityError: The provider continues the message, the reply shows nothing, or both shapes are rejected; the
            message has the reply and the remedy.
        ProviderError: A request failed.
    """
    try:
        reply = reply_as("closes")
    except RequestRejected as rejected:
        return _between(reply_as, rejected)
    judged = judge(reply)
    if judged == "new turn":
        return "closes"
    why = (
        "continues an assistant message at the end instead of beginning a new turn, so that a look-ahead would be the "
        "answer itself"
        if judged == "continued"
        else "gave a reply that does not show whether a new turn began"
    )
    raise CapabilityError(
        f"the provider {why}: after {CUT[-26:]!r} it wrote {reply[:_OPENING]!r}; if you know better, name the "
        "capability: 'between' puts a user message between, 'raw' needs a completions endpoint, 'closes' overrules "
        "this test"
    )


def _between(reply_as: Callable[[Shape], str], rejected: RequestRejected) -> Shape:
    try:
        reply = reply_as("between")
    except RequestRejected as again:
        raise CapabilityError(
            "the provider rejects a conversation with and without an assistant message at its end, so that this is not "
            f"the reason: {again}; checks send temperature 0 unless greedy=False, and the fields of request="
        ) from rejected
    require_reply(reply)
    return "between"


def require_tokens(ask: Callable[[], Mapping[str, float]]) -> None:
    """Ask for the first tokens of a fresh turn; CapabilityError if they come without log-probabilities.

    Args:
        ask: Asks, and returns what the provider tells of the first token; CheckError if it tells nothing.
    """
    try:
        found = ask()
    except RequestRejected as rejected:
        raise CapabilityError(f"{NO_LOGPROBS}: it rejects the request ({rejected})") from rejected
    if not found:
        raise CapabilityError(NO_LOGPROBS)


def require_reply(reply: str) -> None:
    """CapabilityError if the model had nothing to say in a fresh turn: every check would pass."""
    if not reply.strip():
        raise CapabilityError(
            "the trial check got an empty reply: the model ends a fresh turn at once, and every check would pass; name "
            "another capability ('between' with a longer text, or 'raw')"
        )
