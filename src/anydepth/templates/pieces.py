"""Compare texts that a chat template wrote by pieces that no cut may go through."""

import re
from itertools import takewhile

# A marker in angle or square brackets, a word, or one character: `</s>` and `<|end|>` begin alike, but share nothing.
_PIECE = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|\w+|.", re.DOTALL)
_NUMBER = re.compile(r"\d+")


def pieces(text: str) -> list[str]:
    """Return the markers, words and single characters of `text`; joined they are `text` again."""
    return _PIECE.findall(text)


def shared_start(one: str, other: str) -> str:
    """Return the longest beginning of `one` in whole pieces that `other` begins with too."""
    pairs = zip(pieces(one), pieces(other), strict=False)
    return "".join(mine for mine, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def shared_end(one: str, other: str) -> str:
    """Return the longest end of `one` in whole pieces that `other` has too; numbers may differ: turns are counted."""
    pairs = zip(reversed(pieces(one)), reversed(pieces(other)), strict=False)
    same = [mine for mine, _ in takewhile(lambda pair: _uncounted(pair[0]) == _uncounted(pair[1]), pairs)]
    return "".join(reversed(same))


def says_something(text: str) -> bool:
    """Say whether there is a letter or a digit in `text`: enough to tell one opener of a turn from another."""
    return any(each.isalnum() for each in text)


def _uncounted(piece: str) -> str:
    return _NUMBER.sub("0", piece)
