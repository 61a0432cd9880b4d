"""Find the assistant's role in a generation prompt."""

import re
from itertools import accumulate

from anydepth.templates.pieces import pieces, says_something, shared_end, shared_start
from anydepth.templates.published import Channel, role_words


def role_end(prompt: str, channel: Channel | None, question: str) -> int:
    """Return where the assistant's role ends in `prompt`, else the last word before what opens a channel.

    What comes behind the opener of a channel is no role. A word that names the answer rather than who gives it
    (`response`) counts only where no other is there. An unknown name is what stands where the user's does.

    Args:
        prompt: The generation prompt.
        channel: How thoughts are written, if that is known.
        question: What opens a user's turn; empty if that is not known.
    """
    before = _before_channels(prompt, channel)
    return max(_word_ends(before), default=0) or _place_end(before, question) or len(before.rstrip())


def stem_of(prompt: str, leads: list[str], channel: Channel | None, question: str) -> str:
    """Return the beginning of a generation prompt, up to the assistant's role, that every answer's turn has.

    Args:
        prompt: The generation prompt.
        leads: What stands between a question and its answer; shows how far a prompt without a role goes.
        channel: How thoughts are written, if that is known.
        question: What opens a user's turn.
    """
    stops = list(accumulate(map(len, pieces(prompt))))
    words = [prompt[: _whole(stops, end)] for end in _word_ends(_before_channels(prompt, channel))]
    if words:  # a prompt with empty thoughts may open the turn a second time
        return next((stem for stem in reversed(words) if any(stem.strip() in lead for lead in leads)), words[-1])
    end = role_end(prompt, channel, question)
    if not _place_end(prompt[:end], question):
        written = pieces(prompt)
        shared = [
            shared_start(prompt, lead[at:])
            for lead in leads
            for at in accumulate(map(len, pieces(lead)), initial=0)
            if written and lead[at:].startswith(written[0])
        ]
        end = len(max(shared, key=len, default="").rstrip()) or end
    return prompt[: _whole(stops, end)]


def _before_channels(prompt: str, channel: Channel | None) -> str:
    openers = (channel.think_open, channel.answer_open) if channel else ()
    cuts = [prompt.find(opener) for opener in openers if opener and prompt.find(opener) > 0]
    return prompt[: min(cuts, default=len(prompt))]


def _word_ends(text: str) -> list[int]:
    """Return where the words end that name the assistant, else those that name the answer."""
    for words in role_words():
        spelled = rf"(?<![^\W_])(?:{'|'.join(map(re.escape, words))})(?![^\W_])"
        if ends := [match.end() for match in re.finditer(spelled, text, re.IGNORECASE)]:
            return ends
    return []


def _whole(stops: list[int], end: int) -> int:
    """Return where the piece ends in which `end` is."""
    return next((stop for stop in stops if stop >= end), end)


def _place_end(prompt: str, question: str) -> int:
    """Return where the only word ends in which `prompt` differs from the opener of a question; 0 if it is not so."""
    start, end = shared_start(prompt, question), shared_end(prompt, question)
    name = prompt[len(start) : len(prompt) - len(end)]
    return len(start) + len(name) if says_something(start + end) and says_something(name) else 0
