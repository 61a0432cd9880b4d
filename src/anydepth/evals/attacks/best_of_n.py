"""Change how a request looks, at random, without changing what it says (best-of-n sampling, arXiv 2412.03556)."""

import random
import re

from anydepth.errors import ConfigError

_WORD = re.compile(r"\w+")


def augment(text: str, seed: int, *, strength: float = 0.4) -> str:
    """One random variant of `text`: letters inside words in another order, other case, some other characters.

    Args:
        text: The request.
        seed: The same seed gives the same variant.
        strength: 0 changes nothing, 1 most. As published, words and letters change with its square root as
            probability, characters with its third power.
    """
    if not 0 <= strength <= 1:
        raise ConfigError(f"strength is {strength}; it must be in [0, 1]")
    rng = random.Random(seed)
    scrambled = scramble(text, rng, strength**0.5)
    return noise(capitalise(scrambled, rng, strength**0.5), rng, strength**3)


def scramble(text: str, rng: random.Random, probability: float) -> str:
    """Shuffle the inner letters of words of more than three."""

    def mixed(match: re.Match[str]) -> str:
        word = match[0]
        if len(word) <= 3 or rng.random() >= probability:
            return word
        inner = list(word[1:-1])
        rng.shuffle(inner)
        return f"{word[0]}{''.join(inner)}{word[-1]}"

    return _WORD.sub(mixed, text)


def capitalise(text: str, rng: random.Random, probability: float) -> str:
    """Turn letters into the other case."""
    return "".join(letter.swapcase() if rng.random() < probability else letter for letter in text)


def noise(text: str, rng: random.Random, probability: float) -> str:
    """Replace printable ASCII characters by a neighbour in the table."""

    def near(letter: str) -> str:
        if not " " < letter <= "~" or rng.random() >= probability:
            return letter
        other = chr(ord(letter) + rng.choice((-1, 1)))
        return other if " " < other <= "~" else letter

    return "".join(map(near, text))
