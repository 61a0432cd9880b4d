"""Numbers and names as people read them."""

import math
import re
from collections.abc import Iterator

from anydepth.evals.figure import Figure

NOTHING = "–"
"""Stands where there was nothing to measure."""

PERCENT = "\u00a0%"

_SUFFIX = {"tokens": "\u00a0tokens", "seconds": "\u00a0s", "MiB": "\u00a0MiB", "ratio": "×"}
_ACRONYMS = {"auroc": "AUROC", "roc": "ROC", "fpr": "FPR", "tpr": "TPR"}
_AXES = {"depth": "depth (tokens)", "fpr": "false-positive rate", "tpr": "true-positive rate"}
_AXIS_UNITS = {"share": "share of answers", "auroc": "AUROC", "ratio": "ratio", "count": "count"}


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
    if figure.unit in ("share", "auroc") or figure.value is None:
        return amount(figure.value, figure.unit)
    return _signed(f"{figure.value:,.{_digits(figure)}f}")


def interval(figure: Figure) -> str:
    """The interval of a figure, in its unit; nothing where it has none, or where there was nothing to measure."""
    if figure.interval is None or figure.value is None:
        return NOTHING
    if figure.unit in ("share", "auroc"):
        low, high = (amount(end, figure.unit).removesuffix(PERCENT) for end in figure.interval)
    else:
        low, high = (_signed(f"{end:,.{_digits(figure)}f}") for end in figure.interval)
    return f"[{low}, {high}]"


def suffix(figure: Figure) -> str:
    """What a sentence says behind the number of a figure."""
    return "" if figure.value is None else _SUFFIX.get(figure.unit, "")


def about(key: str, value: str | int | float) -> str:
    """One fact of a group, e.g. `probe` of an arm and `layer 14` of a layer."""
    return value if isinstance(value, str) else f"{spaced(key)} {axis_value(value)}"


def axis_value(value: str | int | float) -> str:
    """A place on an axis; names of tokens and tables stay as they are."""
    return value if isinstance(value, str) else _signed(f"{value:,.10g}")


def axis(key: str | None) -> str:
    """What an axis is called."""
    return "" if key is None else _AXES.get(key, spaced(key))


def axis_unit(unit: str) -> str:
    """What an axis of a unit is called."""
    return _AXIS_UNITS.get(unit, unit)


def begun(text: str) -> str:
    """A text that begins with a capital."""
    return text[:1].upper() + text[1:]


def tied(text: str) -> str:
    """A text whose numbers keep their per-cent sign on the line."""
    return text.replace(" %", PERCENT)


def in_parts(text: str) -> Iterator[tuple[str, bool]]:
    """The pieces of a sentence, and whether each is a name as the code has it, which sentences put in backticks."""
    for number, piece in enumerate(re.split(r"`([^`]+)`", tied(text))):
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
    digits = 1
    if 0 < size < 0.05 or 99.95 <= size < 100:  # neither nothing nor all may be said of what is only nearly so
        digits = 2
    return _signed(f"{value:.{digits}f}")


def _digits(figure: Figure) -> int:
    """Digits behind the point of a number and both ends of its interval: three in all, none of whole numbers."""
    assert figure.value is not None
    numbers = (figure.value, *(figure.interval or ()))
    size = max(map(abs, numbers))
    if all(number == int(number) for number in numbers) or size >= 100:
        return 0
    return min(6, max(0, 2 - math.floor(math.log10(size))))


def _three_digits(value: float) -> str:
    size = abs(value)
    if value == int(value):
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 0.001:
        return f"{value:#.3g}"
    return f"{value:.1e}"


def _signed(text: str) -> str:
    return text.replace("-", "−")
