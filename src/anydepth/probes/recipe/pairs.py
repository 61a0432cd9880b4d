"""Two held-out sets to tell apart, and the halves of the prompts that they are told apart on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anydepth.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Pair:
    """Two held-out sets to tell apart, by the names of their splits.

    Attributes:
        name: What to call the comparison.
        harmful: Splits of the harmful answers.
        benign: Splits of the benign ones.
        first_depth: Both are judged from this depth on alone, in tokens: earlier checks are left out, and with them the
            answers that end before.
    """

    name: str
    harmful: tuple[str, ...]
    benign: tuple[str, ...]
    first_depth: int = 0

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Pair":
        """Read `{name, harmful, benign}`, with `first_depth` or without; a single split may be given as text."""
        try:
            harmful, benign = (
                (side,) if isinstance(side := record[key], str) else tuple(side) for key in ("harmful", "benign")
            )
            first = record.get("first_depth", 0)
            if isinstance(first, bool) or not isinstance(first, int) or first < 0:
                raise ConfigError(
                    f"comparison {record['name']!r} has the first_depth {first!r}; give a whole number of tokens of at "
                    "least 0, e.g. 25"
                )
            return cls(record["name"], harmful, benign, first)
        except KeyError as error:
            raise ConfigError(f"a comparison has no {error}; give name, harmful and benign") from error
        except TypeError as error:
            raise ConfigError(f"a comparison is {record!r}; write {{name, harmful, benign}}") from error


def half(trail_keys: Sequence[str], which: int) -> np.ndarray:
    """Mask, bool `[keys]`, of one half (0 or 1) of the prompts: what is chosen on one is reported on the other."""
    # digests end in a hexadecimal digit; a table may bring keys of its own
    ends = [key[-1] for key in trail_keys]
    return np.array([(int(end, 16) if end in "0123456789abcdef" else ord(end)) % 2 == which for end in ends], bool)


def one_a_prompt(answers: Sequence[str], prompts: Sequence[str], hosts: Sequence[str]) -> np.ndarray:
    """Mask, bool `[answers]`, of answers that share no prompt, so that they are independent draws.

    The answers are taken in the order of their digests `answers`; one is left out if its own prompt (key in `prompts`)
    or the one whose request is read (`hosts`) is that of an answer taken before.
    """
    found, taken = np.zeros(len(answers), bool), set[str]()
    for place in sorted(range(len(answers)), key=answers.__getitem__):
        keys = {prompts[place], hosts[place]}
        if taken.isdisjoint(keys):
            taken |= keys
            found[place] = True
    return found
