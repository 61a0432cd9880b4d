"""What travels between the scheduler and the worker, as one attribute of vLLM's own messages."""

from dataclasses import dataclass, field
from typing import Any

ATTRIBUTE = "anydepth"
"""Name of the attribute: of `SchedulerOutput` for `Orders`, of `ModelRunnerOutput` for `Findings`."""


@dataclass(slots=True)
class Orders:
    """What the worker is to read in one step.

    Attributes:
        reads: Request id, offset from the first token that the step computes of it, index of the read.
        openers: Ids of requests whose probability of the refusal openers is wanted, after their last token.
        states: Request id, offset, index of the site: whole states instead of a probe's values.
    """

    reads: list[tuple[str, int, int]] = field(default_factory=list)
    openers: list[str] = field(default_factory=list)
    states: list[tuple[str, int, int]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.reads or self.openers or self.states)


@dataclass(slots=True)
class Findings:
    """What the worker read, in the order of the orders.

    Attributes:
        reads: The part of each read in a linear detector's logit; for others its state, float32 `[hidden_size]`.
        openers: Probability that the next token is one of the openers.
        states: Hidden states, float32 arrays `[hidden_size]`.
    """

    reads: list[Any] = field(default_factory=list)
    openers: list[float] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
