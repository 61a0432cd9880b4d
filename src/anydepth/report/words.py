"""Numbers and names as people read them."""

import math
import re
from collections.abc import Iterable, Iterator

from anydepth.evals.figure import Figure

NOTHING = "–"
"""Stands where there was nothing to measure."""

PERCENT = "\u00a0%"

SUFFIX = {"tokens": "\u00a0tokens", "seconds": "\u00a0s", "MiB": "\u00a0MiB", "ratio": "×"}
"""What a sentence says behind the number of a figure."""

_ACRONYMS = {"auroc": "AUROC", "roc": "ROC", "fpr": "FPR", "tpr": "TPR"}
_AXES = {"depth": "depth (tokens)", "fpr": "false-positive rate", "tpr": "true-positive rate"}
_AXIS_UNITS = {"share": "share of answers", "auroc": "AUROC"}


def spaced(name: str) -> str:
    """A name without underscores."""
    words = name.replace("_", " ").split()
    return " ".join(_ACRONYMS.get(word, word) for word in words)


def slug(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].rstrip("-") or "figure"


def amount(value: float | None, unit: str = "") -> str:
    """A number in as many digits as its unit deserves; a share in per cent."""
    if value is None:
        return NOTHING
    if unit == "share":
        return _percent(100 * value) + PERCENT
    return _signed(f"{value:.3f}" if unit == "auroc" else _three_digits(value))


def value(figure: Figure) -> str:
    """The number of a figure, with as many digits as its interval has."""
    return NOTHING if figure.value is None else _in_digits(figure, figure.value)


def interval(figure: Figure) -> str:
    """The interval of a figure, in its unit; nothing where it has none, or where there was nothing to measure."""
    if figure.interval is None or figure.value is None:
        return NOTHING
    low, high = (_in_digits(figure, end).removesuffix(PERCENT) for end in figure.interval)
    return f"[{low}, {high}]"


def about(key: str, value: str | int | float) -> str:
    """One fact of a group, e.g. `probe` of an arm and `layer 14` of a layer."""
    return value if isinstance(value, str) else f"{spaced(key)} {axis_value(value)}"


def facts(figure: Figure, keys: Iterable[str]) -> tuple[str, ...]:
    """The facts of a figure's group under these keys."""
    return tuple(about(key, figure.group[key]) for key in keys if key in figure.group)


def joined(*parts: str) -> str:
    """A label of several parts; empty ones are left out."""
    return " · ".join(filter(None, parts))


def axis_value(value: str | int | float) -> str:
    """A place on an axis; names of tokens and tables stay as they are."""
    return value if isinstance(value, str) else _signed(f"{value:,.10g}")


def axis(key: str | None) -> str:
    """What an axis is called."""
    return "" if key is None else _AXES.get(key, spaced(key))


def axis_unit(unit: str) -> str:
    """What an axis of a unit is called."""
    return _AXIS_UNITS.get(unit, unit)


def in_parts(text: str) -> Iterator[tuple[str, bool]]:
    """The pieces of a sentence, and whether each is a name as the code has it, which sentences put in backticks.

    Numbers keep their per-cent sign on the line.
    """
    for number, piece in enumerate(re.split(r"`([^`]+)`", text.replace(" %", PERCENT))):
        if piece:
            yield piece, number % 2 == 1


def counted(count: int, noun: str) -> str:
    """Return `1 answer`, `2 answers`, `2,000 answers`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def span(counts: list[int]) -> str:
    """The smallest and the largest of some numbers, e.g. `40–120`."""
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _percent(value: float) -> str:
    size = abs(value)
    nearly = 0 < size < 0.05 or 99.95 <= size < 100  # neither nothing nor all may be said of what is only nearly so
    return _signed(f"{value:.{2 if nearly else 1}f}")


def _in_digits(figure: Figure, number: float) -> str:
    """The number of a figure or an end of its interval: they have three digits in all, none behind a whole number."""
    if figure.unit in ("share", "auroc"):
        return amount(number, figure.unit)
    numbers = [each for each in (figure.value, *(figure.interval or ())) if each is not None]
    size = max(map(abs, numbers))
    whole = size >= 100 or all(each == int(each) for each in numbers)
    digits = 0 if whole else min(6, max(0, 2 - math.floor(math.log10(size))))
    return _signed(f"{number:,.{digits}f}")


def _three_digits(value: float) -> str:
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:#.3g}" if size >= 0.001 else f"{value:.1e}"


def _signed(text: str) -> str:
    return text.replace("-", "−")
