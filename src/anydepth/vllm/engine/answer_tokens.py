"""Keep what was found at the tokens of one answer, for the means that its checks read."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from anydepth.errors import CheckError
from anydepth.templates.header import mean_divisor


@dataclass(slots=True, eq=False)
class AnswerTokens:
    """What the worker found at each token of one answer, from its first token on and without a gap.

    It depends on the text alone, so a token that is computed again (after a preemption, in a check request) is not read
    again.

    Attributes:
        start: Position of the answer's first token in its request.
        found: Per token one array: float64 `[means]`, each mean read's part of a linear detector's logit, or the
            states themselves, float32 `[means, hidden_size]`.
    """

    start: int
    found: list[np.ndarray] = field(default_factory=list)

    @property
    def next(self) -> int:
        """Position of the first token that has not been read."""
        return self.start + len(self.found)

    def add(self, first: int, found: Sequence[np.ndarray] | np.ndarray) -> None:
        """Keep what was found from position `first` on, as far as it is new; nothing of it behind a gap."""
        if first <= self.next:
            self.found.extend(found[self.next - first :])

    def mean(self, column: int, depth: int, token: int) -> np.ndarray:
        """The mean of one mean read over the last tokens before `depth`; those that the answer lacks count as zero.

        Args:
            column: Which of the mean reads, from 0.
            depth: Depth of the check, in tokens, at least 1.
            token: The mean, as `Read.token` has it.

        Returns:
            A scalar or `[hidden_size]`, of the type that was found; summed in float64.

        Raises:
            CheckError: A token before `depth` has not been read.
        """
        if len(self.found) < depth:
            raise CheckError(f"nothing was read at position {self.next}")
        window = np.stack([each[column] for each in self.found[max(0, depth + token) : depth]])
        return (window.sum(0, dtype=np.float64) / mean_divisor(token, depth)).astype(window.dtype)
