"""Say what was found in a few lines, and where nothing was: read from the figures, nothing is known beforehand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from anydepth.evals.figure import Figure, Summary
from anydepth.report import words
from anydepth.report.panels import differing
from anydepth.report.runs import Run
from anydepth.report.tables import Cell, cell

MOST = 4
"""Figures of a suite and run among the key results."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What runs say about one thing.

    Attributes:
        what: What was measured and where, e.g. `Halted at depth 2,500`.
        runs: Labels of the runs.
        rows: What it is about, and what each run found; None where it found nothing.
        more: Figures of the same kind that the section has beside these.
        answers: Over how many answers, e.g. `40–120`; empty for figures that are of no answers.
        judge: Which judge decided; may be empty.
    """

    what: str
    runs: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    more: int
    answers: str
    judge: str


@dataclass(frozen=True, slots=True)
class _Said:
    """Figures of one run that are a key result."""

    what: str
    figures: Sequence[Figure]
    cells: Mapping[str, Cell]
    more: int


@dataclass(frozen=True, slots=True)
class NoEffect:
    """A figure that the sample does not tell from no effect."""

    suite: str
    run: str
    what: str
    cell: Cell
    none: str


def statements(runs: Sequence[Run], suite: str) -> list[Statement]:
    """The key results of a suite; runs that speak of the same thing are put side by side."""
    found: dict[str, dict[str, _Said]] = {}
    for run in runs:
        said = _said(run.summaries[suite]) if suite in run.summaries else None
        if said is not None:
            found.setdefault(said.what, {})[run.label] = said
    return [_statement(what, said) for what, said in found.items()]


def without_effect(runs: Sequence[Run]) -> list[NoEffect]:
    """All figures whose interval includes no effect, where that can be said.

    It can be said of an AUROC, which is 0.5 by chance, and of a number whose interval reaches below 0: only a
    difference can be negative, and it is 0 where nothing differs. Of a rate or a cost it cannot be said: there is no
    value that means no effect.
    """
    return [
        NoEffect(
            summary.title,
            run.label,
            ", ".join((words.spaced(figure.name), *words.facts(figure, figure.group))),
            cell(figure),
            none,
        )
        for run in runs
        for summary in run.summaries.values()
        for figure in summary.figures
        if (none := _no_effect(figure))
    ]


def empty_figures(runs: Sequence[Run], suite: str) -> int:
    """How many figures of a suite have no value."""
    found = [run.summaries[suite] for run in runs if suite in run.summaries]
    return sum(figure.value is None for summary in found for figure in summary.figures)


def _no_effect(figure: Figure) -> str | None:
    if figure.value is None or figure.interval is None:
        return None
    low, high = figure.interval
    if figure.unit == "auroc":
        return "0.5 (chance)" if low <= 0.5 <= high else None
    return "0 (no difference)" if low < 0 <= high else None


def _statement(what: str, said: dict[str, _Said]) -> Statement:
    labels = dict.fromkeys(label for each in said.values() for label in each.cells)
    rows = [(label, tuple(each.cells.get(label) for each in said.values())) for label in labels]
    figures = [figure for each in said.values() for figure in each.figures]
    counts = [figure.answers for figure in figures if figure.answers]
    judges = dict.fromkeys(figure.judge for figure in figures if figure.judge)
    return Statement(
        what=what[:1].upper() + what[1:],
        runs=tuple(said),
        rows=tuple(rows),
        more=max(each.more for each in said.values()),
        answers=words.span(counts) if counts else "",
        judge=", ".join(judges),
    )


def _said(summary: Summary) -> _Said | None:
    """The figures of the suite's first chart that has any, at its far end; else the first figures with an interval."""
    for chart in summary.charts:
        named = [figure for figure in summary.figures if figure.name in chart.figures[:1] and figure.value is not None]
        shown = [figure for figure in named if chart.x is None or chart.x in figure.group]
        if chart.kind == "heatmap" and shown:
            return _extremes(shown)
        overall = [figure for figure in named if chart.x not in figure.group and set(figure.group) <= {chart.by}]
        if overall or shown:
            return _cut(named, *((overall, None) if overall else _narrowed(shown, chart.x)), chart.by)
    measured = [figure for figure in summary.figures if figure.value is not None and figure.interval is not None]
    named = [figure for figure in measured if figure.name == measured[0].name]
    return _cut(named, named, None, None) if named else None


def _extremes(figures: list[Figure]) -> _Said:
    """The lowest and the highest of a field, or its only one, each with its place, which differs from run to run."""
    ranked = sorted(figures, key=lambda figure: figure.value or 0.0)
    ends = {"": ranked[0]} if len(ranked) == 1 else {"lowest": ranked[0], "highest": ranked[-1]}
    cells = {label: replace(cell(each), place=", ".join(words.facts(each, each.group))) for label, each in ends.items()}
    return _Said(words.spaced(figures[0].name), tuple(ends.values()), cells, len(ranked) - len(ends))


def _narrowed(figures: list[Figure], x: str | None) -> tuple[list[Figure], str | None]:
    """Those of one place along `x`, the largest number or the first of what are no numbers; and the key they share."""
    if x is None:
        return figures, None
    places = [figure.group[x] for figure in figures]
    numbers = [place for place in places if not isinstance(place, str)]
    if not numbers and len(set(places)) == len(figures):
        return figures, None  # one figure a place: the places tell them apart
    place = max(numbers) if numbers else places[0]
    return [figure for figure in figures if figure.group[x] == place], x


def _cut(named: list[Figure], chosen: list[Figure], x: str | None, by: str | None) -> _Said:
    """As many as a reader takes in.

    What they share is said once, unless all figures of the name share it: then it says nothing. `by` tells them apart
    even where there is one only.
    """
    figures = chosen[:MOST]
    first, telling, parted = figures[0], {by, *differing(figures)} - {x}, differing(named, x)
    shared = [key for key in first.group if key in parted and key not in telling]
    what, at = words.spaced(first.name), words.facts(first, [x] if x else ())
    if x is not None and not isinstance(first.group[x], str):
        what, at = f"{what} at {at[0]}", ()
    labels = [", ".join(words.facts(each, (key for key in each.group if key in telling))) for each in figures]
    cells = dict(zip(labels, map(cell, figures), strict=True))
    return _Said(", ".join((what, *at, *words.facts(first, shared))), figures, cells, len(chosen) - len(figures))
