"""Collect the values of one check while the engine's steps bring them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anydepth.errors import CheckError
from anydepth.types import Score
from anydepth.vllm.engine.positions import Place


@dataclass(slots=True)
class Inquiry:
    """One check at one depth, read at several places that may fall into different steps (chunked prefill).

    Attributes:
        depth: Depth of the check.
        places: Where to read.
        values: Index of a read -> its part of the logit, or its state `[hidden_size]`, as far as they have come.
    """

    depth: int
    places: Sequence[Place]
    values: dict[int, Any] = field(default_factory=dict)

    @property
    def missing(self) -> int | None:
        """The first position that has not been read yet, or None if all have: no cached prefix may reach beyond it."""
        return min((position for position, read in self.places if read not in self.values), default=None)

    def within(self, begin: int, count: int) -> Iterator[Place]:
        """The places (offset from `begin`, read) that a step over `count` tokens from position `begin` computes."""
        for position, read in self.places:
            if begin <= position < begin + count:
                yield position - begin, read

    def score(self, judge: Callable[[Mapping[int, Any]], Score | Exception]) -> Score | Exception:
        """What `judge` makes of the values; an error stands for a place that was not read, or a judge that failed."""
        if self.missing is not None:
            return CheckError(f"the state at position {self.missing} was not read")
        try:
            return judge(self.values)
        except Exception as error:  # a detector of somebody else's: its failure is a failed check
            return error
