"""Find the assistant's role in a generation prompt."""

import re
from itertools import accumulate

from anydepth.overrides import Channel, role_words
from anydepth.pieces import pieces, shared_start


def role_end(prompt: str, channel: Channel | None) -> int:
    """Return where the assistant's role ends in `prompt`, else the last word before what opens a channel.

    What comes behind the opener of a channel is no role. A word that names the answer rather than who gives it
    (`response`) counts only where no other is there.
    """
    openers = (channel.think_open, channel.answer_open) if channel else ()
    cuts = [prompt.find(opener) for opener in openers if opener and prompt.find(opener) > 0]
    before = prompt[: min(cuts, default=len(prompt))]
    return _word_end(before) or len(before.rstrip())


def stem_of(prompt: str, leads: list[str], channel: Channel | None) -> str:
    """Return the beginning of a generation prompt, up to the assistant's role, that every answer's turn has.

    Args:
        prompt: The generation prompt.
        leads: What stands between a question and its answer; shows how far a prompt without a role goes.
        channel: How thoughts are written, if that is known.
    """
    end = role_end(prompt, channel)
    if not _word_end(prompt[:end]):
        written = pieces(prompt)
        shared = [
            shared_start(prompt, lead[at:])
            for lead in leads
            for at in _starts(lead)
            if written and lead[at:].startswith(written[0])
        ]
        end = len(max(shared, key=len, default="").rstrip()) or end
    return next((prompt[:stop] for stop in accumulate(map(len, pieces(prompt))) if stop >= end), prompt)


def _word_end(text: str) -> int:
    for words in role_words():
        spelled = rf"(?<![^\W_])(?:{'|'.join(map(re.escape, words))})(?![^\W_])"
        if ends := [match.end() for match in re.finditer(spelled, text, re.IGNORECASE)]:
            return ends[-1]
    return 0


def _starts(text: str) -> list[int]:
    return list(accumulate(map(len, pieces(text)), initial=0))[:-1]
