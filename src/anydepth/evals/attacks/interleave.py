"""Spread a harmful answer thinly over a harmless one."""

from collections.abc import Sequence
from dataclasses import dataclass

from anydepth.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Ratio:
    """How much of each: `harmful` tokens, then `benign` ones, and so on."""

    harmful: int
    benign: int

    def __post_init__(self) -> None:
        if self.harmful < 1 or self.benign < 0:
            raise ConfigError(f"a ratio is {self}; give at least 1 harmful token and no negative number")

    def __str__(self) -> str:
        return f"{self.harmful}:{self.benign}"

    @classmethod
    def of(cls, text: str) -> "Ratio":
        """Read `25:50`; ConfigError if it is not of that form."""
        harmful, colon, benign = text.partition(":")
        if not (colon and harmful.strip().isdecimal() and benign.strip().isdecimal()):
            raise ConfigError(f"a ratio is {text!r}; write HARMFUL:BENIGN in tokens, e.g. 25:50")
        return cls(int(harmful), int(benign))


@dataclass(frozen=True, slots=True)
class Mixture:
    """An answer made of two.

    Attributes:
        token_ids: The answer.
        harmful: Of each token, whether it is of the harmful answer.
    """

    token_ids: tuple[int, ...]
    harmful: tuple[bool, ...]

    def harmful_before(self, depth: int) -> int:
        """How many of the first `depth` tokens are harmful ones."""
        return sum(self.harmful[:depth])


def interleave(harmful: Sequence[int], benign: Sequence[int], ratio: Ratio, length: int) -> Mixture:
    """An answer of at most `length` tokens; it begins with a benign part, and ends when either answer is used up.

    The parts stand in the order of their answers, so that the harmful one can be put together again.
    """
    ids: list[int] = []
    marks: list[bool] = []
    taken = {True: 0, False: 0}
    of = {True: harmful, False: benign}
    turn = ratio.benign == 0
    while len(ids) < length:
        size = min(ratio.harmful if turn else ratio.benign, length - len(ids))
        part = of[turn][taken[turn] : taken[turn] + size]
        if not part:
            break
        ids += part
        marks += [turn] * len(part)
        taken[turn] += len(part)
        turn = ratio.benign == 0 or not turn
    return Mixture(tuple(ids), tuple(marks))
