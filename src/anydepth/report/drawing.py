"""What a figure shows, as plain data: panels of series of dots."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from anydepth.evals.figure import ChartKind
from anydepth.report.words import axis_unit

Place = str | int | float
"""Where a value stands along an axis."""


@dataclass(frozen=True, slots=True)
class Dot:
    """One value of a series.

    Attributes:
        x: Where it stands; of a histogram, the number itself.
        value: How high; None leaves a gap.
        low: Low end of its interval.
        high: High end of its interval.
        answers: Over how many answers.
    """

    x: Place
    value: float | None = None
    low: float | None = None
    high: float | None = None
    answers: int = 0


@dataclass(frozen=True, slots=True)
class Series:
    """Dots that belong together.

    Attributes:
        label: What the legend says.
        look: Number of its colour and marker.
        dash: Number of its dashes.
        dots: The values.
    """

    label: str
    look: int
    dash: int
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """Series on one pair of axes.

    Attributes:
        title: What tells it apart from the other panels; may be empty.
        unit: The unit of the values.
        series: The series that are drawn.
        measure: Name of the figures, if they have one.
        marks: Single points to mark.
    """

    title: str
    unit: str
    series: tuple[Series, ...]
    measure: str = ""
    marks: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def dots(self) -> list[Dot]:
        """The dots of all series."""
        return [dot for series in self.series for dot in series.dots]

    @property
    def places(self) -> list[Place]:
        """Where the dots stand, in order."""
        return in_order(dot.x for dot in self.dots)

    @property
    def numbers(self) -> list[float]:
        """All values and the ends of their intervals."""
        return [end for dot in self.dots for end in (dot.value, dot.low, dot.high) if end is not None]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart of one or several runs, ready to be drawn.

    Attributes:
        kind: How the chart is drawn, e.g. `line`.
        panels: The pairs of axes, in order.
        x: What the horizontal axis is called.
        y: What the vertical axis is called, where its unit does not say it.
        log_x: Logarithmic horizontal axis.
    """

    kind: ChartKind
    panels: tuple[Panel, ...]
    x: str = ""
    y: str = ""
    log_x: bool = False


def value_axis(panel: Panel, longest: int = 48) -> str:
    """What the axis of the values is called; the unit alone where the name would not fit."""
    unit = axis_unit(panel.unit)
    name = f"{panel.measure} ({unit})" if panel.measure and panel.measure != unit else unit
    return name if len(name) <= longest else unit


def in_order(places: Iterable[Place]) -> list[Place]:
    """Each place once: numbers by size, then anything else as it came."""
    return sorted(dict.fromkeys(places), key=lambda place: (True, 0) if isinstance(place, str) else (False, place))
