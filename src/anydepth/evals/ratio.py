"""The ratio of harmful to harmless pieces in an interleaved answer."""

from dataclasses import dataclass

from anydepth.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Ratio:
    """How much of each: `harmful` tokens, then `benign` ones, and so on."""

    harmful: int
    benign: int

    def __post_init__(self) -> None:
        if self.harmful < 1 or self.benign < 0:
            raise ConfigError(f"a ratio is {self}; give at least 1 harmful token and no negative number")

    def __str__(self) -> str:
        return f"{self.harmful}:{self.benign}"

    @classmethod
    def of(cls, text: str) -> "Ratio":
        """Read `25:50`; ConfigError if it is not of that form."""
        harmful, colon, benign = text.partition(":")
        if not (colon and harmful.strip().isdecimal() and benign.strip().isdecimal()):
            raise ConfigError(f"a ratio is {text!r}; write HARMFUL:BENIGN in tokens, e.g. 25:50")
        return cls(int(harmful), int(benign))
