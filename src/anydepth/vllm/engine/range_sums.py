"""Add up states over ranges of a request's tokens while the engine's steps bring them."""

from collections.abc import Sequence

import numpy as np


class RangeSums:
    """Sums of states over ranges of tokens; of all the states, only sums at the ends of ranges and steps are kept.

    Args:
        ranges: Begin and end (exclusive) of each range: positions in the request, begin below end. May be empty.

    Attributes:
        next: Position of the first token whose states are still wanted.
        end: Position behind the last token that is wanted.
    """

    def __init__(self, ranges: Sequence[Sequence[int]]) -> None:
        self._ranges = [(begin, end) for begin, end in ranges]
        self._stops = sorted({stop for each in self._ranges for stop in each})
        self.next, self.end = (self._stops[0], self._stops[-1]) if self._stops else (0, 0)
        self._total = np.zeros(())
        self._sums = {self.next: self._total}

    def add(self, first: int, states: np.ndarray) -> None:
        """Add the states from position `first` on, `[tokens, ...]`, as far as they are new; none behind a gap."""
        new = states[self.next - first :] if first <= self.next else states[:0]
        if not len(new):
            return
        ends = [stop - self.next for stop in self._stops if self.next < stop < self.next + len(new)] + [len(new)]
        pieces = np.add.reduceat(new, [0, *ends[:-1]], axis=0, dtype=np.float64)
        totals = self._total + np.cumsum(pieces, axis=0)
        self._sums |= {self.next + end: total.copy() for end, total in zip(ends, totals, strict=True)}
        self._total, self.next = totals[-1].copy(), self.next + len(new)

    def sums(self) -> list[np.ndarray]:
        """The sum of each range, float64 `[...]`, once `next` has come to `end`."""
        return [self._sums[end] - self._sums[begin] for begin, end in self._ranges]
