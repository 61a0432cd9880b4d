"""Colours, markers and dashes: colours are safe for the colour-blind and never the only sign."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Paint:
    """A colour of a chart, by what it is for.

    Attributes:
        name: CSS custom property that holds it in the page.
        light: On a light page, and in every file on disk.
        dark: On a dark page.
    """

    name: str
    light: str
    dark: str


TEXT = Paint("--text", "#1b2231", "#e5e9f1")
MUTED = Paint("--muted", "#525c6e", "#a6b0c1")
AXIS = Paint("--edge", "#767f91", "#76819b")
GRID = Paint("--grid", "#e3e7ee", "#2a3240")
SURFACE = Paint("--surface", "#fefefe", "#1a2029")
BLANK = Paint("--blank", "#eceff5", "#262e3b")
SERIES = (
    Paint("--series-1", "#0a4fc4", "#5c9dff"),
    Paint("--series-2", "#dd5a00", "#ff9a57"),
    Paint("--series-3", "#2b9873", "#8ff0c0"),
    Paint("--series-4", "#7a1f8f", "#e08af0"),
    Paint("--series-5", "#6b4200", "#f0e06a"),
    Paint("--series-6", "#2f91e0", "#c5e2ff"),
    Paint("--series-7", "#7c7f99", "#98a3a0"),
    Paint("--series-8", "#9e1b3c", "#f06060"),
)
PAINTS = (TEXT, MUTED, AXIS, GRID, SURFACE, BLANK, *SERIES)

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h")
DASHES: tuple[tuple[int, tuple[float, ...]], ...] = (
    (0, ()),
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (7, 2, 1.5, 2)),
    (0, (3, 1.5, 1, 1.5, 1, 1.5)),
)


def colour(look: int) -> str:
    """The colour of the series with this number, as charts are drawn with it."""
    return SERIES[look % len(SERIES)].light


def marker(look: int) -> str:
    """The marker of the series with this number; eleven against eight colours, so that 88 series differ."""
    return MARKERS[look % len(MARKERS)]


def unlike(look: int, others: Iterable[int]) -> bool:
    """Whether neither colour nor marker of this number is one of the others'."""
    return all(
        look % len(SERIES) != each % len(SERIES) and look % len(MARKERS) != each % len(MARKERS) for each in others
    )
