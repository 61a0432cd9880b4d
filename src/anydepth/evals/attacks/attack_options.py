"""Say how much the attacks may cost."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Self

from anydepth.evals.context import Context
from anydepth.evals.ratio import Ratio

ATTACKS = ("none", "stored", "gcg", "best-of-n", "pair")
"""The attacks of the suite `attacks`; `none` sends the requests as they are."""

REPLAYED = ("crossed", "set-up", "interleaved", "copied-header", "style", "spoof", "spread")
"""Attacks of the suite `adaptive` that are made of stored answers; the model writes nothing and nothing is judged."""

ADAPTIVE = (*REPLAYED, "asked", "prefill", "suffix")
"""The attacks of the suite `adaptive`."""

_RATIOS = "25:0,25:25,25:50,25:100,5:20"


def _read(read: Callable[[Context, str], Any]) -> Any:
    """A field whose value is read as the suite's option of its name."""
    return field(metadata={"read": read})


def _number(whole: int, quick: int) -> Any:
    return _read(lambda context, name: context.number(name, whole, quick))


def _samples(whole: int, quick: int) -> Any:
    return _read(lambda context, name: context.samples(name, whole, quick))


def _attacks(known: tuple[str, ...]) -> Any:
    """The attacks that the user names, by default all, in the order of the suite."""
    every = ",".join(known)
    return _read(lambda context, name: tuple(sorted(context.value(name, every, every), key=known.index)))


@dataclass(frozen=True, slots=True)
class _Options:
    """Options of a suite, each a field that `_read` makes."""

    @classmethod
    def of(cls, context: Context) -> Self:
        """The suite's own numbers, those of `--quick`, or what the user says.

        Raises:
            ConfigError: An attack is not known, or a number is none.
        """
        return cls(**{each.name: each.metadata["read"](context, each.name) for each in fields(cls)})


@dataclass(frozen=True, slots=True)
class AttackOptions(_Options):
    """What the suite `attacks` may cost; every field is an option `--set attacks.NAME=VALUE`.

    Attributes:
        attacks: Which attacks are made; as an option with commas between them.
        stored: Stored prompts of each table.
        tokens: Length of an answer at most.
        scan: Tokens of a stored answer that are scanned.
        gcg_prompts: Requests that a suffix is searched for.
        gcg_steps: Steps of a search.
        gcg_width: Suffixes tried a step.
        bon_prompts: Requests of best-of-n sampling.
        bon_n: Variants of each.
        pair_prompts: Requests of the PAIR-style loop.
        pair_rounds: Rounds for each.
    """

    attacks: tuple[str, ...] = _attacks(ATTACKS)
    stored: int = _samples(24, 4)
    tokens: int = _number(64, 64)
    scan: int = _number(200, 100)
    gcg_prompts: int = _samples(4, 1)
    gcg_steps: int = _number(40, 5)
    gcg_width: int = _number(64, 16)
    bon_prompts: int = _samples(12, 3)
    bon_n: int = _number(8, 3)
    pair_prompts: int = _samples(6, 2)
    pair_rounds: int = _number(3, 2)


@dataclass(frozen=True, slots=True)
class AdaptiveOptions(_Options):
    """What the suite `adaptive` may cost; every field is an option `--set adaptive.NAME=VALUE`.

    Attributes:
        attacks: Which attacks are made; as an option with commas between them.
        stored: Stored answers, harmful ones and as many harmless ones.
        scan: Tokens of each that are scanned; of one in another shape or between other sentences twice as many.
        tokens: Length of an answer that the model writes.
        asked: Requests per style.
        prefill_prompts: Requests of the rank-assisted prefill.
        prefix: Tokens of the stored answer that it begins with.
        top: Candidates at each of its windows.
        gcg_prompts: Requests that a suffix is searched for.
        gcg_steps: Steps of a search.
        gcg_width: Suffixes tried a step.
        gcg_weight: Of the probe in the loss, in hundredths.
        ratios: Harmful to harmless tokens, e.g. `25:50`, with commas between them.
    """

    attacks: tuple[str, ...] = _attacks(ADAPTIVE)
    stored: int = _samples(60, 4)
    scan: int = _number(200, 100)
    tokens: int = _number(64, 64)
    asked: int = _samples(8, 2)
    prefill_prompts: int = _samples(12, 2)
    prefix: int = _number(10, 10)
    top: int = _number(20, 20)
    gcg_prompts: int = _samples(4, 1)
    gcg_steps: int = _number(30, 5)
    gcg_width: int = _number(64, 16)
    gcg_weight: int = _number(25, 25)
    ratios: tuple[Ratio, ...] = _read(lambda context, name: context.value(name, _RATIOS, _RATIOS))
