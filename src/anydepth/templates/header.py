"""The Safety Tokens as ids, and how the tokens of a tokenizer are spelled."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from typing import Any

from anydepth.errors import ConfigError

_BYTE = re.compile(r"^<0x([0-7][0-9A-F])>$")
"""An ASCII character that a sentencepiece vocabulary spells as a byte, mostly a line break."""


CONTENT = -1
"""Among header tokens: the last token before the header, that is the last one of the text so far."""

WHOLE = -(2**31 - 1)
"""Among header tokens: the mean over all tokens of the answer before the check."""


def is_mean(token: int) -> bool:
    """Whether `token` of a read stands for a mean over answer tokens: `-n` with n >= 2, or `WHOLE`."""
    return token < CONTENT


def mean_divisor(token: int, depth: int) -> int:
    """What the sum of states is divided by for the mean `token` at `depth`, in tokens; at least 1.

    It is n for the mean over the last n tokens, also where the answer has fewer: what is missing counts as zero, so
    that a short answer weighs little. For `WHOLE` it is the depth.
    """
    return max(depth, 1) if token == WHOLE else -token


def check_token(token: int) -> None:
    """Raise ConfigError unless `token` can be read: a header index from 0, `CONTENT`, or a mean down to `WHOLE`."""
    if isinstance(token, bool) or not isinstance(token, int) or token < WHOLE:
        raise ConfigError(
            f"token is {token!r}; give an index in the header, {CONTENT} for the one before it, or -n for the mean of "
            f"the last n answer tokens, {WHOLE} for that of all"
        )


def token_text(token: int) -> str:
    """Return the text form of a read's token: `3`, `content`, `mean25`, or `mean` for the whole answer."""
    if token == CONTENT:
        return "content"
    if token == WHOLE:
        return "mean"
    return f"mean{-token}" if is_mean(token) else str(token)


def parse_token(text: str) -> int:
    """Return the token that `token_text` writes as `text`; ConfigError if it is not of such a form."""
    named = {"content": CONTENT, "mean": WHOLE}
    if text in named:
        return named[text]
    length = text.removeprefix("mean")
    if length.isdecimal() and length != text and 2 <= int(length) < -WHOLE:
        return -int(length)
    if text.isdecimal():
        return int(text)
    raise ConfigError(
        f"token is {text!r}; write an index in the header, e.g. 3, content for the token before the header, mean25 for "
        "the mean of the last 25 answer tokens (2 or more), or mean for that of the whole answer"
    )


def behind_last(ids: Sequence[int], stem: Sequence[int], rest: Sequence[int]) -> int | None:
    """Return the position behind the last `stem` in `ids`, and behind what of `rest` follows it; None without one."""
    for end in range(len(ids), len(stem) - 1, -1):
        if ids[end - len(stem) : end] == stem:
            same = takewhile(lambda pair: pair[0] == pair[1], zip(ids[end:], rest, strict=False))
            return end + len(list(same))
    return None


@dataclass(frozen=True, slots=True)
class Header:
    r"""The Safety Tokens of a chat template: the tokens that separate the user from the assistant (arXiv 2510.18081).

    Attributes:
        ids: The Safety Tokens whole: end of turn, then the full generation prompt.
        read_index: Index in `ids` of the read token, whose hidden state is read.
        answer_ids: What must follow `ids` to be in the answer channel; empty for ordinary templates.
        tokens: Printable form of each of `ids`, line breaks written as `\n`.
    """

    ids: tuple[int, ...]
    read_index: int
    answer_ids: tuple[int, ...]
    tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.read_index < len(self.ids):
            raise ConfigError(
                f"read index is {self.read_index}, the header has {len(self.ids)} tokens {list(self.tokens)}; "
                f"choose 0 to {len(self.ids) - 1}"
            )

    @property
    def probe_ids(self) -> tuple[int, ...]:
        """The header up to the read token, which is all that a probe has to run."""
        return self.ids[: self.read_index + 1]

    def read_at(self, index: int) -> "Header":
        """Return the same header with another read token; ConfigError if `index` is out of range."""
        return replace(self, read_index=index)


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a tokenizer spells its tokens.

    Attributes:
        tokenizer: The tokenizer.
    """

    tokenizer: Any

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens included."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each id as it stands in a sentence; decoded one at a time they lose their spaces.

        A character of several tokens is in the piece of the last of them.
        """
        found: list[str] = []
        held: list[int] = []
        for each, name in zip(ids, self._vocabulary(ids), strict=True):
            spelled = _BYTE.sub(lambda match: chr(int(match[1], 16)), name)
            spelled = spelled.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n")
            held = [] if spelled.isascii() else [*held, each]
            text = self.text(held) if held else spelled
            if "\ufffd" in text:  # a byte-level vocabulary spells such a character in letters, which are no word
                found.append("")
                continue
            found.append(text if text[:1].isspace() or not spelled.startswith(" ") else f" {text}")
            held = []
        return found

    def printable(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Decode each id by itself; where that gives nothing or half a character, take its name in the vocabulary."""
        spellings = zip(self._each(ids), self._vocabulary(ids), strict=True)
        named = [text if text and "\ufffd" not in text else name for text, name in spellings]
        return tuple(text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") for text in named)

    def find(self, ids: Sequence[int], token: str) -> int | None:
        """Return the last index in `ids` whose token is spelled `token`: decoded, printable or as in the vocabulary.

        A word of several tokens is found too; its last token is meant.
        """
        spellings = zip(self._each(ids), self.printable(ids), self._vocabulary(ids), strict=True)
        found = [index for index, forms in enumerate(spellings) if token in forms]
        pieces = self.pieces(ids)
        starts = list(accumulate(map(len, pieces), initial=0))
        found += [
            end - 1
            for end in range(1, len(starts))
            if token and any("".join(pieces[start:end]).strip(" ") == token for start in range(end))
        ]
        return max(found, default=None)

    def _each(self, ids: Sequence[int]) -> list[str]:
        return [self.text([each]) for each in ids]

    def _vocabulary(self, ids: Sequence[int]) -> list[str]:
        names = self.tokenizer.convert_ids_to_tokens(list(ids))
        return [name if isinstance(name, str) else text for text, name in zip(self._each(ids), names, strict=True)]
