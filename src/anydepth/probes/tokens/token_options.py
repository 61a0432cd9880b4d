"""Say how Safety Tokens are trained."""

from dataclasses import asdict, dataclass
from typing import Any

from anydepth.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TokenOptions:
    """Options of a training of Safety Tokens.

    Attributes:
        count: Number of tokens.
        epochs: How often each training answer is looked at; 0 leaves the tokens of the header as they are.
        rate: Step size of the embeddings at the beginning, as a share of the root mean square of the header's own; it
            falls to 0 in equal steps.
        probe_rate: Step size of the probe's weight, on standardised states; it falls in the same way.
        memory: Bytes of caches of texts that are kept from one epoch to the next; the other texts are run again.
        seed: Seed of the order of the answers.
    """

    count: int = 1
    epochs: int = 6
    rate: float = 0.02
    probe_rate: float = 0.003
    memory: int = 4 * 2**30
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("epochs", 0), ("memory", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} is {value!r}; give a whole number from {least} on")
        for name in ("rate", "probe_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; a step size is above 0")

    def record(self) -> dict[str, Any]:
        """What decides the result, JSON-ready."""
        return {name: value for name, value in asdict(self).items() if name != "memory"}
