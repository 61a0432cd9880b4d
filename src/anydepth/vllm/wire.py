"""Name what travels between the scheduler and the worker, as one attribute of vLLM's own messages."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

ATTRIBUTE = "anydepth"
"""Name of the attribute: of `SchedulerOutput` for `Orders`, of `ModelRunnerOutput` for `Findings`."""

OPENERS = -1
"""In place of the index of a read: the probability that the next token is one of the refusal openers."""

Key = tuple[str, int, int]
"""Request id, position in its tokens (from 0), and index of the read; index of the site where states are collected."""


class Span(NamedTuple):
    """Neighbouring tokens of one answer that a step computes; at each of them all of `Setup.span_reads` are read.

    Attributes:
        first: Position of the first of them in the request (from 0).
        offset: The same, counted from the request's first token that the step computes.
        size: How many they are.
    """

    first: int
    offset: int
    size: int


@dataclass(slots=True)
class Orders:
    """What the worker is to read in one step; false if it is nothing.

    Attributes:
        states: Key of each single state -> offset from the request's first token that the step computes.
        spans: Request id -> tokens of its answer to read for the means.
    """

    states: dict[Key, int] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.states or self.spans)


@dataclass(slots=True)
class Findings:
    """What the worker read in one step.

    Attributes:
        states: Key -> a float (a read's part of a linear detector's logit, or the probability of the openers), or a
            state, float32 `[hidden_size]`.
        spans: Request id -> position of the first token, and what was found at each token: float64
            `[tokens, span_reads]` for a linear detector, else float32 `[tokens, span_reads, hidden_size]`.
    """

    states: dict[Key, Any] = field(default_factory=dict)
    spans: dict[str, tuple[int, "np.ndarray"]] = field(default_factory=dict)
