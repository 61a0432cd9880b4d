"""Say how much the attacks may cost."""

from dataclasses import dataclass

from anydepth.errors import ConfigError
from anydepth.evals.attacks.interleave import Ratio
from anydepth.evals.context import Context

ATTACKS = ("none", "stored", "gcg", "best-of-n", "pair")
"""The attacks of the suite `attacks`; `none` sends the requests as they are."""

ADAPTIVE = ("prefill", "spoof", "style", "spread", "suffix")
"""The attacks of the suite `adaptive`."""

_RATIOS = "25:0,25:25,25:50,25:100,5:20"


@dataclass(frozen=True, slots=True)
class AttackOptions:
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

    attacks: tuple[str, ...]
    stored: int
    tokens: int
    scan: int
    gcg_prompts: int
    gcg_steps: int
    gcg_width: int
    bon_prompts: int
    bon_n: int
    pair_prompts: int
    pair_rounds: int

    @classmethod
    def of(cls, context: Context) -> "AttackOptions":
        """The suite's own numbers, those of `--quick`, or what the user says.

        Raises:
            ConfigError: An attack is not known, or a number is none.
        """
        return cls(
            attacks=chosen(context, "attacks", ATTACKS),
            stored=samples(context, "stored", 24, 4),
            tokens=amount(context, "tokens", 64, 64),
            scan=amount(context, "scan", 200, 100),
            gcg_prompts=samples(context, "gcg_prompts", 4, 1),
            gcg_steps=amount(context, "gcg_steps", 40, 5),
            gcg_width=amount(context, "gcg_width", 64, 16),
            bon_prompts=samples(context, "bon_prompts", 12, 3),
            bon_n=amount(context, "bon_n", 8, 3),
            pair_prompts=samples(context, "pair_prompts", 6, 2),
            pair_rounds=amount(context, "pair_rounds", 3, 2),
        )


@dataclass(frozen=True, slots=True)
class AdaptiveOptions:
    """What the suite `adaptive` may cost; every field is an option `--set adaptive.NAME=VALUE`.

    Attributes:
        attacks: Which attacks are made; as an option with commas between them.
        stored: Stored answers, harmful ones and as many harmless ones.
        scan: Tokens of each that are scanned.
        tokens: Length of an answer that the model writes.
        asked: Requests that are asked for in each style.
        prefill_prompts: Requests of the rank-assisted prefill.
        prefix: Tokens of the stored answer that it begins with.
        top: Candidates at each of its windows.
        gcg_prompts: Requests that a suffix is searched for.
        gcg_steps: Steps of a search.
        gcg_width: Suffixes tried a step.
        gcg_weight: Of the probe in the loss, in hundredths.
        ratios: Harmful to harmless tokens, e.g. `25:50`, with commas between them.
    """

    attacks: tuple[str, ...]
    stored: int
    scan: int
    tokens: int
    asked: int
    prefill_prompts: int
    prefix: int
    top: int
    gcg_prompts: int
    gcg_steps: int
    gcg_width: int
    gcg_weight: int
    ratios: tuple[Ratio, ...]

    @classmethod
    def of(cls, context: Context) -> "AdaptiveOptions":
        """The suite's own numbers, those of `--quick`, or what the user says; ConfigError names what is wrong."""
        return cls(
            attacks=chosen(context, "attacks", ADAPTIVE),
            stored=samples(context, "stored", 24, 4),
            scan=amount(context, "scan", 200, 100),
            tokens=amount(context, "tokens", 64, 64),
            asked=samples(context, "asked", 8, 2),
            prefill_prompts=samples(context, "prefill_prompts", 12, 2),
            prefix=amount(context, "prefix", 10, 10),
            top=amount(context, "top", 20, 20),
            gcg_prompts=samples(context, "gcg_prompts", 4, 1),
            gcg_steps=amount(context, "gcg_steps", 30, 5),
            gcg_width=amount(context, "gcg_width", 64, 16),
            gcg_weight=amount(context, "gcg_weight", 25, 25),
            ratios=tuple(map(Ratio.of, context.setting("ratios", _RATIOS).split(","))),
        )


def amount(context: Context, name: str, whole: int, quick: int) -> int:
    """The option `name` of the suite, or its own number; ConfigError if it is no whole number of at least 1."""
    value = context.setting(name, str(quick if context.options.quick else whole))
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"{context.suite}.{name} is {value!r}; give a whole number of at least 1")
    return int(value)


def samples(context: Context, name: str, whole: int, quick: int) -> int:
    """The same for a number of samples, which `--limit` bounds."""
    found = amount(context, name, whole, quick)
    return min(found, context.options.limit or found)


def chosen(context: Context, name: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The option `name` of the suite, a list with commas, by default all that are known; ConfigError if one is not."""
    given = tuple(part.strip() for part in context.setting(name, ",".join(known)).split(","))
    if wrong := [part for part in given if part not in known]:
        raise ConfigError(f"{context.suite}.{name} names {wrong[0]!r}; choose from {', '.join(known)}")
    return tuple(part for part in known if part in given)
