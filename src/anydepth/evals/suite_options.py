"""The options of single suites, `--set SUITE.NAME=VALUE`; a value that they cannot have is refused before a run."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from anydepth.errors import ConfigError
from anydepth.evals.ratio import Ratio
from anydepth.templates.call_formats import formats

_DIGITS = 9
"""Digits of a number at most: none of the options is a count of more than some millions."""

_Rule = tuple[Callable[[str], Any], str]
"""How the text of an option is read (ValueError or ConfigError if it cannot be), and in words what it may be."""


def _whole(text: str, least: int = 1) -> int:
    if not (text.isdecimal() and len(text) <= _DIGITS and int(text) >= least):
        raise ValueError
    return int(text)


_from_zero = partial(_whole, least=0)


def _each(read: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(read(part.strip()) for part in text.split(","))


def _one_of(*names: str) -> _Rule:
    return (
        lambda text: tuple(dict.fromkeys(names[names.index(part.strip())] for part in text.split(","))),
        f"names of {', '.join(names)}, with commas between them",
    )


def _rising(text: str) -> tuple[int, ...]:
    found = _each(_from_zero)(text)
    if len(found) < 2 or found[0] != 0 or list(found) != sorted(set(found)):
        raise ValueError
    return found


def _strength(text: str) -> float:
    if not 0 < abs(float(text)) < float("inf"):
        raise ValueError
    return float(text)


def _if(holds: Callable[[str], bool]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not holds(text):
            raise ValueError
        return text

    return read


def _known_format(text: str) -> bool:
    return text in ("auto", *(row.name for row in formats()))


_COUNT: _Rule = (_whole, "a whole number of at least 1")
_TEXT: _Rule = (_if(lambda text: bool(text.strip())), "a text that is not empty")
_PATH: _Rule = (_if(lambda text: Path(text).expanduser().exists()), "a file or folder that is there")
_DEPTHS: _Rule = (_each(_from_zero), "whole numbers with commas, e.g. 0,25,100")
_LAYERS: _Rule = (
    _each(_whole),
    "blocks from 1 on with commas, e.g. 8,16,20 (what block 0 takes in is the token alone, whatever the answer)",
)
_ARMS: Mapping[str, _Rule] = {"content_probe": _PATH, "deep_aligned": _PATH}
_GCG = ("gcg_prompts", "gcg_steps", "gcg_width")
_MODELS_OWN = ("stored", "tokens", "scan", *_GCG)

SETTINGS: Mapping[str, Mapping[str, _Rule]] = {
    "deep-prefill": {"tokens": _COUNT, "depths": _DEPTHS, **_ARMS},
    "attacks": {
        "attacks": _one_of("none", "stored", "gcg", "best-of-n", "pair"),
        **dict.fromkeys((*_MODELS_OWN, "bon_prompts", "bon_n", "pair_prompts", "pair_rounds"), _COUNT),
        **_ARMS,
    },
    "adaptive": {
        "attacks": _one_of(
            *("crossed", "set-up", "interleaved", "copied-header", "style", "spoof", "spread"),
            *("asked", "prefill", "suffix"),
        ),
        **dict.fromkeys((*_MODELS_OWN, "asked", "prefill_prompts", "prefix", "top", "gcg_weight"), _COUNT),
        "ratios": (_each(Ratio.of), "HARMFUL:BENIGN in tokens with commas, e.g. 25:50,5:20"),
        **_ARMS,
    },
    "over-refusal": {**dict.fromkeys(("new-tokens", "scan-tokens", "few", "few-tokens"), _COUNT), **_ARMS},
    "utility": {"new-tokens": _COUNT, **_ARMS},
    "separability": {
        "layers": _LAYERS,
        "data": _TEXT,
        "held-out": (_if(("pairs", "none").__contains__), "pairs or none"),
    },
    "interval": {"tokens": _COUNT, **_ARMS},
    "erosion": {
        "steps": (_rising, "rising whole numbers that begin with 0, e.g. 0,25,50"),
        "data": _one_of("adversarial", "benign"),
        "benign-sources": _TEXT,
        **dict.fromkeys(
            ("few", "new-tokens", "benign-tokens", "examples", "batch", "longest", "rank"),
            _COUNT,
        ),
    },
    "multi-turn": {**dict.fromkeys(("few", "scan-tokens", "few-tokens"), _COUNT), **_ARMS},
    "actions": {
        "format": (_if(_known_format), f"one of auto, {', '.join(row.name for row in formats())}"),
        "asked": _COUNT,
    },
    "thoughts": {"data": _TEXT, "thought-tokens": _COUNT, "answer-tokens": _COUNT},
    "languages": {
        "data": _TEXT,
        **dict.fromkeys(("requests", "answers", "mixed", "scan", "new-tokens"), _COUNT),
        "own": (_from_zero, "a whole number of at least 0"),
        **_ARMS,
    },
    "causal": {
        **dict.fromkeys(("depth", "tokens", "random"), _COUNT),
        "strengths": (_each(_strength), "finite numbers other than 0 with commas, e.g. -8,-2,2,8"),
    },
    "latency": dict.fromkeys(("samples", "rounds"), _COUNT),
}
"""Suite -> its options -> how their values are read."""


def check_settings(settings: Mapping[str, str]) -> None:
    """Refuse options that no suite has, and values that would fail after hours of work.

    What depends on the model or the data (how many blocks there are, which tables) is checked when a suite begins.

    Raises:
        ConfigError: The message names the option, its value and what it may be.
    """
    for name, value in settings.items():
        suite, _, option = name.partition(".")
        known = SETTINGS.get(suite)
        if known is None:
            raise ConfigError(f"--set {name}={value}: there is no suite {suite!r}; choose from {', '.join(SETTINGS)}")
        if option not in known:
            raise ConfigError(f"--set {name}={value}: {suite} has no option {option!r}; it has {', '.join(known)}")
        read_setting(name, value)


def read_setting(name: str, text: str) -> Any:
    """The value of the option `SUITE.NAME` that is given as `text`; ConfigError says what it may be instead."""
    suite, _, option = name.partition(".")
    read, rule = SETTINGS[suite][option]
    try:
        return read(text)
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"{name} is {text!r}; give {rule}") from error
