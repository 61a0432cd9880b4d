"""Count the tokens of a request to an API, and what they cost."""

from dataclasses import dataclass

from anydepth.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TokenCount:
    """What one request used, as the provider's `usage` says, in the provider's tokens.

    Attributes:
        prompt: Tokens that were read, cached ones included.
        completion: Tokens that were written, thoughts included.
    """

    prompt: int
    completion: int


@dataclass(frozen=True, slots=True)
class Prices:
    """What a provider charges per million tokens, in a currency of your own; cached tokens are counted in full.

    Attributes:
        prompt: Price of a million prompt tokens, at least 0.
        completion: Price of a million completion tokens, at least 0.

    Raises:
        ConfigError: A price is below 0 or no number.
    """

    prompt: float
    completion: float

    def __post_init__(self) -> None:
        for name, value in (("prompt", self.prompt), ("completion", self.completion)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ConfigError(f"the price {name} is {value!r}; give a number of at least 0 per million tokens")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The price of so many tokens."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6
