"""Search for a suffix that makes a model begin a wanted answer (GCG, arXiv 2307.15043)."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from anydepth.errors import ConfigError

if TYPE_CHECKING:
    from anydepth.detectors import LinearProbe

START = " x" * 20
"""The suffix that a search begins with: twenty tokens of little meaning, with a space before each."""

Told = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a search may cost.

    Attributes:
        steps: Steps at most; fewer if the model begins the wanted answer by itself.
        width: Suffixes that are tried in a step; those that tokenise differently when read again are left out.
        target: Tokens of the wanted answer at most.
        top: Tokens with the best gradient that are drawn from, at each position.
        batch: Suffixes in one forward pass.
    """

    steps: int
    width: int
    target: int = 16
    top: int = 128
    batch: int = 16

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ConfigError(f"{name} of a GCG search is {value}; give at least 1")


@dataclass(frozen=True, slots=True)
class Evasion:
    """A guard that a search tries to get past as well.

    Attributes:
        probe: The guard's probe; its logit at depth 0 and behind the target is part of the loss.
        weight: Of that part: loss = target's cross-entropy + weight × mean softplus(logit).
    """

    probe: "LinearProbe"
    weight: float


@dataclass(frozen=True, slots=True)
class Suffix:
    """What a search found.

    Attributes:
        text: Goes behind the request as it is.
        loss: The loss with it.
        start: The loss that the search began with.
        steps: Steps that were made.
    """

    text: str
    loss: float
    start: float
    steps: int
