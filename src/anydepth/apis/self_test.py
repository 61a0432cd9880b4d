"""Find out by harmless conversations what a provider makes of an assistant message at the end.

Its reply to an answer that is cut off says something, and the number of prompt tokens that it reports says more: an
assistant message that is closed, and a new turn behind it, take tokens of the chat template besides the text's.
"""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Literal

from anydepth.apis.provider import ChatTurn
from anydepth.apis.token_texts import NO_LOGPROBS
from anydepth.errors import CapabilityError
from anydepth.provider_errors import RequestRejected

logger = logging.getLogger(__name__)

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

COUNTING = "Which colours are there?"
COUNTED = "red green blue white black brown grey pink"
"""A question, and what the answers to it whose tokens are counted are made of, with spaces between."""

_WRAPPED = range(2, 17)  # tokens that a template puts round a message
_TIMES = (2, 4, 6)

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


def counted(prompt_tokens: Callable[[tuple[ChatTurn, ...]], int | None]) -> Judged:
    """What the provider's count of prompt tokens shows of an assistant message at the end.

    With k pieces of text in that message, the prompt has n(k) = a + w + k·t tokens: a without the message, t a piece,
    and w for what the template puts round it. w is 0 where the text is simply what the answer begins with. A count that
    is not on such a line, e.g. since cached tokens are left out, shows nothing; nor does a w of 1, or one so large that
    the provider must have added text of its own.

    Args:
        prompt_tokens: The number of prompt tokens of a conversation by the provider's word; None if it gives none.
    """
    question = ChatTurn("user", COUNTING)
    seen: list[int] = []
    for times in (0, *_TIMES):
        said = (ChatTurn("assistant", " ".join([COUNTED] * times)),) if times else ()
        count = prompt_tokens((question, *said))
        if count is None or (seen and count - seen[-1] < len(COUNTED.split())):  # no token a word: it does not count
            return "unclear"
        seen.append(count)
    without, first, second, third = seen
    if third - second != second - first:
        return "unclear"
    wrapped = first - without - (second - first)
    return "continued" if wrapped <= 0 else "new turn" if wrapped in _WRAPPED else "unclear"


def find_shape(
    reply_as: Callable[[Shape], str],
    prompt_tokens: Callable[[tuple[ChatTurn, ...]], int | None],
    closes_by_default: Callable[[], bool] = lambda: False,
) -> Shape:
    """The shape that this provider takes.

    The count of tokens decides where it shows something, else the reply: a model may complete the cut word in a fresh
    turn of its own accord, or begin anew inside a message that is continued.

    Args:
        reply_as: Asks for a fresh turn behind `CUT` in a shape, and returns the text.
        prompt_tokens: See `counted`.
        closes_by_default: Whether the endpoint says that it is an engine that closes such a message. Asked where the
            count shows a new turn and the reply goes on with the cut word: without that, this is not clear.

    Raises:
        CapabilityError: The provider continues the message, the reply shows nothing, or both shapes are rejected; the
            message has the reply and the remedy.
        ProviderError: A request failed.
    """
    try:
        reply = reply_as("closes")
    except RequestRejected as rejected:
        return _between(reply_as, rejected)
    judged, count = judge(reply), counted(prompt_tokens)
    if count == "new turn" and judged == "continued" and not closes_by_default():
        count = judged = "unclear"  # some templates write thoughts before a last message, whether it is closed or not
    judged = judged if count == "unclear" else count
    if judged == "new turn":
        require_reply(reply)
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


def try_named(named: Shape, reply_as: Callable[[Shape], str]) -> None:
    """Try a shape that the operator has named; that `closes` continues the cut answer is logged as a warning.

    Raises:
        CapabilityError: It is rejected, or the reply is empty.
        ProviderError: The request failed.
    """
    try:
        reply = reply_as(named)
    except RequestRejected as error:
        raise CapabilityError(f"capability {named!r} does not work: {error}; name another, or 'auto'") from error
    require_reply(reply)
    if named == "closes" and judge(reply) == "continued":
        logger.warning("capability 'closes' was named, but a cut answer was continued with %r", reply[:40])


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
