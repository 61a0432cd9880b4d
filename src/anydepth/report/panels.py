"""Take out of runs what a chart shows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from anydepth.evals.figure import Chart, Figure
from anydepth.report.drawing import Dot, Drawing, Panel, Place, Series, in_order
from anydepth.report.looks import Key, Looks
from anydepth.report.runs import Run
from anydepth.report.words import axis, axis_value, facts, joined, spaced

CROWDED = 6
"""More lines than this of several runs are drawn in one panel a run."""

Owned = tuple[str, Figure]
"""A figure with the label of its run."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one run gives to a chart."""

    run: Run
    chart: Chart
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Shared:
    """A chart with all runs that have it."""

    chart: Chart
    parts: tuple[Part, ...]

    @property
    def several(self) -> bool:
        """Whether runs have to be distinguished."""
        return len(self.parts) > 1


def shared_charts(runs: Sequence[Run], suite: str) -> list[Shared]:
    """The charts of a suite, those of the same kind and title put together."""
    found: dict[tuple[str, str, int], list[Part]] = {}
    for run in runs:
        summary = run.summaries.get(suite)
        seen: dict[tuple[str, str], int] = {}
        for chart in summary.charts if summary else ():
            name = (chart.kind, chart.title)
            seen[name] = seen.get(name, 0) + 1
            figures = tuple(f for f in summary.figures if f.name in chart.figures) if summary else ()
            found.setdefault((*name, seen[name]), []).append(Part(run, chart, figures))
    return [Shared(parts[0].chart, tuple(parts)) for parts in found.values()]


def drawing(shared: Shared, looks: Looks) -> Drawing | None:
    """What the chart shows; None where the runs gave it nothing to show."""
    chart = shared.chart
    panels = {"line": _lines, "bars": _bars, "heatmap": _heatmaps}.get(chart.kind, _points)(shared, looks)
    panels = [panel for panel in panels if any(series.dots for series in panel.series)]
    if not panels:
        return None
    x, y = axis(chart.x), axis(chart.by)
    if chart.kind == "roc":
        x, y = x or axis("fpr"), y or axis("tpr")
    return Drawing(chart.kind, tuple(panels), x, y, chart.log_x)


def _lines(shared: Shared, looks: Looks) -> list[Panel]:
    panels = _bars(shared, looks)
    if not shared.several or max((len(panel.series) for panel in panels), default=0) <= CROWDED:
        return panels
    return [
        replace(panel, title=joined(part.run.label, panel.title))
        for part in shared.parts
        for panel in _bars(Shared(part.chart, (part,)), looks)
    ]


def _bars(shared: Shared, looks: Looks) -> list[Panel]:
    """One panel a unit, since units share no axis; and one for each group that the chart does not tell apart itself."""
    x, by = shared.chart.x, shared.chart.by
    units: dict[str, list[Owned]] = {}
    for part in shared.parts:
        for figure in part.figures:
            if x is None or x in figure.group:
                units.setdefault(figure.unit, []).append((part.run.label, figure))
    panels = []
    for unit, owned in units.items():
        facets: dict[Key, list[tuple[str, Key, Figure]]] = {}
        for run, rest, figure in _told_apart(owned, x, by):
            own = facts(figure, (by,)) or (spaced(figure.name),) if by else rest
            facets.setdefault(rest if by else (), []).append((run, own, figure))
        for facet, found in facets.items():
            series = _series(shared, looks, found)
            names = list(dict.fromkeys(spaced(figure.name) for _, _, figure in found))
            alone = by and len(series) == 1 and shared.chart.kind == "bars"  # nothing else says whose bars these are
            title = joined(*facet, series[0].label if alone else "")
            panels.append(Panel(title, unit, series, names[0] if len(names) == 1 else ""))
    return panels


def _series(shared: Shared, looks: Looks, found: list[tuple[str, Key, Figure]]) -> tuple[Series, ...]:
    """The series of several runs side by side."""
    x, by = shared.chart.x, shared.chart.by
    order = {part.run.label: number for number, part in enumerate(shared.parts)}
    dots: dict[tuple[Key, str], list[Dot]] = {}
    for run, key, figure in found:
        place = spaced(figure.name) if x is None else figure.group[x]
        dots.setdefault((key, run), []).append(_dot(place, figure))
    keys = list(dict.fromkeys(key for key, _ in dots))
    named = looks.of(by or "", filter(None, keys))
    runs = looks.of("run", [(run,) for run in order] if () in keys else ())
    series = []
    for key, run in sorted(dots, key=lambda each: (keys.index(each[0]), order[each[1]])):
        label = joined(*key, run if shared.several else "") or shared.chart.title
        look = named[key] if key else runs[run,]
        series.append(Series(label, look, order[run] if shared.several else look, _sorted(dots[key, run])))
    return tuple(series)


def _told_apart(owned: list[Owned], x: str | None, by: str | None) -> list[tuple[str, Key, Figure]]:
    """The figures that a chart shows, each with what, beside `x` and `by`, it takes to tell it from the others.

    Where a figure of the whole has the same place as those of its parts, the chart shows the whole; the table has all.
    """
    places: dict[tuple, list[Owned]] = {}
    for run, figure in owned:
        place = (run, figure.name, figure.group.get(x or ""), figure.group.get(by or ""))
        places.setdefault(place, []).append((run, figure))
    shared = [figure for found in places.values() if len(found) > 1 for _, figure in found]
    keys = differing(shared, x, by)
    kept, left = [], False
    for found in places.values():
        whole = [each for each in found if not any(key in each[1].group for key in keys)]
        chosen = whole if whole and len(found) > 1 else found
        left |= len(chosen) > 1
        kept += chosen
    order = {id(figure): number for number, (_, figure) in enumerate(owned)}
    several = x is not None and len({figure.name for _, figure in kept}) > 1
    return [
        (run, facts(figure, keys if left else ()) + ((spaced(figure.name),) if several else ()), figure)
        for run, figure in sorted(kept, key=lambda each: order[id(each[1])])
    ]


def differing(figures: list[Figure], *shown: str | None) -> tuple[str, ...]:
    """Keys of the groups, beside those that are shown, in which the figures differ."""
    keys = dict.fromkeys(key for figure in figures for key in figure.group if key not in shown)
    return tuple(key for key in keys if len({figure.group.get(key) for figure in figures}) > 1)


def _dot(place: Place, figure: Figure) -> Dot:
    low, high = figure.interval if figure.interval and figure.value is not None else (None, None)
    return Dot(place, figure.value, low, high, figure.answers)


def _sorted(dots: list[Dot]) -> tuple[Dot, ...]:
    """By place if places are numbers; else as they came."""
    order = {place: number for number, place in enumerate(in_order(dot.x for dot in dots))}
    return tuple(sorted(dots, key=lambda dot: order[dot.x]))


def _heatmaps(shared: Shared, _: Looks) -> list[Panel]:
    """One panel a run, figure and further group; its rows are series."""
    x, by = str(shared.chart.x), str(shared.chart.by)
    panels = []
    for part in shared.parts:
        figures = [figure for figure in part.figures if x in figure.group and by in figure.group]
        found: dict[tuple[Key, str], dict[Place, list[Dot]]] = {}
        for _run, rest, figure in _told_apart([(part.run.label, figure) for figure in figures], x, by):
            rows = found.setdefault((rest, figure.unit), {})
            rows.setdefault(figure.group[by], []).append(_dot(figure.group[x], figure))
        for (rest, unit), rows in found.items():
            title = joined(part.run.label if shared.several else "", *rest)
            series = tuple(Series(axis_value(row), 0, 0, _sorted(rows[row])) for row in in_order(rows))
            panels.append(Panel(title, unit, series, spaced(figures[0].name)))
    return panels


def _points(shared: Shared, looks: Looks) -> list[Panel]:
    """Scatters: one panel a run, whose projections share no axes. Else one panel of all runs, unless it is crowded."""
    kind = shared.chart.kind
    series = sum(len(part.chart.points) for part in shared.parts)
    apart = shared.several and (kind == "scatter" or (kind == "roc" and series > CROWDED))
    names = list(dict.fromkeys(name for part in shared.parts for name in part.chart.points))
    keys = [(name,) for name in names]
    numbers = looks.of(looks.kind_of(set(keys), kind), keys)
    groups = [(part,) for part in shared.parts] if apart else [shared.parts]
    panels = []
    for group in groups:
        after = [part.run.label if shared.several and not apart else "" for part in group]
        found = []
        for name in names:
            for number, part in enumerate(group):
                dots = tuple(Dot(*p) if isinstance(p, Sequence) else Dot(p) for p in part.chart.points.get(name, ()))
                dash = number if after[number] else numbers[name,]
                found.append(Series(joined(name, after[number]), numbers[name,], dash, dots))
        marks = {
            joined(m, run): at for run, each in zip(after, group, strict=True) for m, at in each.chart.marks.items()
        }
        panels.append(Panel(group[0].run.label if apart else "", "", tuple(s for s in found if s.dots), "", marks))
    return panels
