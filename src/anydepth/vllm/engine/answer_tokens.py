"""Keep what was found at the tokens of one answer, for the means that its checks read."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from anydepth.errors import CheckError
from anydepth.templates.header import mean_divisor


@dataclass(slots=True, eq=False)
class AnswerTokens:
    """What the worker found at each token of one answer, without a gap, as far as a later check can need it.

    It depends on the text alone, so a token that is computed again (after a preemption, in a check request) is not read
    again.

    Attributes:
        start: Position of the answer's first token in its request.
        found: Per token one array: float64 `[means]`, each mean read's part of a linear detector's logit, or the
            states themselves, float32 `[means, hidden_size]`.
        dropped: How many tokens of the answer's beginning were read and are not in `found` any more.
    """

    start: int
    found: list[np.ndarray] = field(default_factory=list)
    dropped: int = 0

    @property
    def read(self) -> int:
        """How many tokens of the answer have been read."""
        return self.dropped + len(self.found)

    @property
    def next(self) -> int:
        """Position of the first token that has not been read."""
        return self.start + self.read

    def add(self, first: int, found: Sequence[np.ndarray] | np.ndarray) -> None:
        """Keep what was found from position `first` on, as far as it is new; nothing of it behind a gap.

        It is copied: the rows may be views of all that a step has found, which would stay in memory with one of them.
        """
        if first <= self.next:
            self.found.extend(each.copy() for each in found[self.next - first :])

    def drop_before(self, token: int) -> None:
        """Drop what was found at the answer's tokens before number `token` (from 0), as far as they were read."""
        gone = min(max(token - self.dropped, 0), len(self.found))
        del self.found[:gone]
        self.dropped += gone

    def mean(self, column: int, depth: int, token: int) -> np.ndarray:
        """The mean of one mean read over the last tokens before `depth`; those that the answer lacks count as zero.

        Args:
            column: Which of the mean reads, from 0.
            depth: Depth of the check, in tokens, at least 1.
            token: The mean, as `Read.token` has it.

        Returns:
            A scalar or `[hidden_size]`, of the type that was found; summed in float64.

        Raises:
            CheckError: A token of the mean has not been read, or was dropped.
        """
        if self.read < depth:
            raise CheckError(f"nothing was read at position {self.next}")
        begin = max(0, depth + token)
        if begin < self.dropped:
            raise CheckError(f"what was read at position {self.start + begin} is not kept any more")
        window = np.stack([each[column] for each in self.found[begin - self.dropped : depth - self.dropped]])
        return (window.sum(0, dtype=np.float64) / mean_divisor(token, depth)).astype(window.dtype)
