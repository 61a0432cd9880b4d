"""Collect the values of one check while the engine's steps bring them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import exp, isfinite

from anydepth.backends.vllm.places import Place
from anydepth.errors import CheckError
from anydepth.types import Score


@dataclass(slots=True)
class Inquiry:
    """One check at one depth, read at several places that may fall into different steps (chunked prefill).

    Attributes:
        depth: Depth of the check.
        places: Where to read.
        values: Index of a read -> its part of the logit, as far as they have come.
    """

    depth: int
    places: Sequence[Place]
    values: dict[int, float] = field(default_factory=dict)

    @property
    def missing(self) -> int | None:
        """The first position that has not been read yet, or None if all have: no cached prefix may reach beyond it."""
        return min((position for position, read in self.places if read not in self.values), default=None)

    def within(self, begin: int, count: int) -> Iterator[Place]:
        """The places (offset from `begin`, read) that a step over `count` tokens from position `begin` computes."""
        for position, read in self.places:
            if begin <= position < begin + count:
                yield position - begin, read

    def score(self, bias: float) -> Score | Exception:
        """Sigmoid of the sum of the values and the bias; a CheckError stands for one that is missing or not finite."""
        if self.missing is not None:
            return CheckError(f"the state at position {self.missing} was not read")
        logit = sum(self.values.values()) + bias
        if not isfinite(logit):
            return CheckError("the hidden state is not finite")
        return Score(1 / (1 + exp(-logit)) if logit >= 0 else exp(logit) / (1 + exp(logit)))
