"""The key results, and what shows no effect: read from the figures."""

from collections.abc import Sequence

import pytest

from anydepth.evals.figure import Chart, Figure
from anydepth.report.findings import Statement, statements, without_effect
from tests.unit.report.conftest import OpenRuns

LINE = Chart("line", "L", ("halted",), x="depth", by="arm")


def halted(value: float | None, answers: int = 40, judge: str | None = None, **group: str | int | float) -> Figure:
    return Figure("halted", value, (0.0, 1.0), answers, "share", group, judge)


def said(opened: OpenRuns, figures: Sequence[Figure], chart: Chart | None) -> Statement:
    (found,) = statements(opened(("org/a", figures, [chart] if chart else [])), "interval")
    return found


def numbers(statement: Statement) -> dict[str, list[str | None]]:
    return {label: [cell and cell.value for cell in cells] for label, cells in statement.rows}


def test_the_first_chart_at_its_far_end(opened: OpenRuns) -> None:
    figures = [
        halted(d / 1000 + (arm == "probe") / 2, 40 + d, "rubric", arm=arm, depth=d)
        for arm in ("base", "probe")
        for d in (0, 100)
    ]
    found = said(opened, [Figure("other", 0.9, (0.8, 1.0), 5), *figures], LINE)
    assert (found.what, found.answers, found.judge, found.more) == ("Halted at depth 100", "140", "rubric", 0)
    assert numbers(found) == {"base": ["10.0\u00a0%"], "probe": ["60.0\u00a0%"]}


def test_the_whole_goes_before_its_parts(opened: OpenRuns) -> None:
    figures = [halted(0.1, depth=0, arm="probe"), halted(0.3, arm="probe"), halted(0.2, arm="probe", seed=1)]
    found = said(opened, figures, LINE)
    assert (found.what, numbers(found)) == ("Halted", {"probe": ["30.0\u00a0%"]})


def test_no_more_than_a_reader_takes_in(opened: OpenRuns) -> None:
    found = said(opened, [halted(0.5, depth=9, arm=f"arm {n}") for n in range(7)], LINE)
    assert (len(found.rows), found.more) == (4, 3)


def test_names_along_the_axis(opened: OpenRuns) -> None:
    chart = Chart("bars", "B", ("halted",), x="set", by="arm")
    figures = [halted(n / 10, arm=arm, set=each, label=label) for n, (arm, each, label) in enumerate(
        [("base", "one", "benign"), ("probe", "one", "benign"), ("probe", "two", "harmful")], 1)]  # fmt: skip
    found = said(opened, figures, chart)
    assert found.what == "Halted, one, benign", "what the shown ones share, and others do not, is said"
    assert numbers(found) == {"base": ["10.0\u00a0%"], "probe": ["20.0\u00a0%"]}
    alone = said(opened, [halted(0.1, set="one"), halted(0.2, set="two")], chart)
    assert (alone.what, numbers(alone)) == ("Halted", {"one": ["10.0\u00a0%"], "two": ["20.0\u00a0%"]})


def test_a_field_is_told_by_its_ends(opened: OpenRuns) -> None:
    chart = Chart("heatmap", "H", ("auroc",), x="depth", by="layer")
    figures = [
        Figure("auroc", v, None, 9, "auroc", {"layer": n, "depth": 5}) for n, v in enumerate((0.7, 0.5, 0.9, None))
    ]
    found = said(opened, figures, chart)
    assert found.what == "AUROC"
    assert [(label, cell.value, cell.place) for label, (cell,) in found.rows if cell] == [
        ("lowest", "0.500", "layer 1, depth 5"),
        ("highest", "0.900", "layer 2, depth 5"),
    ]
    assert found.more == 1


def test_a_field_of_one_cell_is_said_once(opened: OpenRuns) -> None:
    chart = Chart("heatmap", "H", ("auroc",), x="depth", by="layer")
    found = said(opened, [Figure("auroc", 0.7, None, 9, "auroc", {"layer": 3, "depth": 5})], chart)
    assert [(label, cell.value, cell.place) for label, (cell,) in found.rows if cell] == [
        ("", "0.700", "layer 3, depth 5")
    ]
    assert found.more == 0


def test_without_a_chart_the_first_figures_that_have_an_interval(opened: OpenRuns) -> None:
    figures = [
        Figure("layers", 3.0, None, 0, "count"),
        halted(None, arm="a"),
        halted(0.2, arm="b"),
        halted(0.3, arm="c"),
    ]
    found = said(opened, figures, None)
    assert numbers(found) == {"b": ["20.0\u00a0%"], "c": ["30.0\u00a0%"]}


def test_nothing_measured_says_nothing(opened: OpenRuns) -> None:
    assert statements(opened(("org/a", [halted(None, depth=0, arm="probe")], [LINE])), "interval") == []


def test_runs_are_put_side_by_side(opened: OpenRuns) -> None:
    runs = opened(
        ("org/a", [halted(0.1, depth=9, arm="base"), halted(0.2, depth=9, arm="probe")], [LINE]),
        ("org/b", [halted(0.3, depth=9, arm="probe")], [LINE]),
        ("org/c", [halted(0.4, depth=5, arm="probe")], [LINE]),
    )
    first, second = statements(runs, "interval")
    assert first.runs == ("a", "b")
    assert numbers(first) == {"base": ["10.0\u00a0%", None], "probe": ["20.0\u00a0%", "30.0\u00a0%"]}
    assert (second.what, second.runs) == ("Halted at depth 5", ("c",))


@pytest.mark.parametrize(
    ("figure", "none"),
    [
        (Figure("auroc", 0.53, (0.44, 0.61), 9, "auroc"), "0.5 (chance)"),
        (Figure("auroc", 0.63, (0.51, 0.71), 9, "auroc"), None),
        (Figure("change", -0.01, (-0.02, 0.01), 9, "share"), "0 (no difference)"),
        (Figure("change", -0.01, (-0.02, 0.0), 9, "tokens"), "0 (no difference)"),
        (Figure("change", -0.02, (-0.03, -0.01), 9, "share"), None),
        (Figure("rate", 0.0, (0.0, 0.1), 9, "share"), None),
        (Figure("cost", 1.0, (0.9, 1.1), 9, "ratio"), None),
        (Figure("auroc", None, (0.0, 1.0), 0, "auroc"), None),
        (Figure("auroc", 0.5, None, 9, "auroc"), None),
    ],
)
def test_no_effect_is_said_where_it_can_be(opened: OpenRuns, figure: Figure, none: str | None) -> None:
    found = without_effect(opened(("org/a", [figure], [])))
    assert [each.none for each in found] == ([none] if none else [])
