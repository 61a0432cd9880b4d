"""Spread a harmful answer thinly over a harmless one."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from anydepth.evals.ratio import Ratio


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
    left = {True: iter(harmful), False: iter(benign)}
    turn = ratio.benign == 0
    while len(ids) < length:
        size = min(ratio.harmful if turn else ratio.benign, length - len(ids))
        part = list(islice(left[turn], size))
        if not part:
            break
        ids += part
        marks += [turn] * len(part)
        turn = ratio.benign == 0 or not turn
    return Mixture(tuple(ids), tuple(marks))
