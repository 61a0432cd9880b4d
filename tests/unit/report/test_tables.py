"""Figures as tables: side by side for people, one a row for programs."""

from anydepth.evals.figure import Chart, Figure
from anydepth.report.panels import Part, shared_charts
from anydepth.report.tables import Cell, figure_table, figures_csv, pivots, points_csv
from tests.unit.report.conftest import OpenRuns

CHART = Chart("table", "T", ("cost",), x="context", by="arm")


def cost(value: float | None, judge: str | None = None, note: str | None = None, **group: str | int | float) -> Figure:
    return Figure("cost", value, None if value is None else (value - 1, value + 1), 20, "ratio", group, judge, note)


def parts_of(opened: OpenRuns, *runs: list[Figure]) -> list[Part]:
    found = opened(*((f"org/{name}", figures, [CHART]) for name, figures in zip("ab", runs, strict=False)))
    return [Part(run, CHART, run.summaries["interval"].figures) for run in found]


def test_the_same_figure_of_two_runs_is_one_row(opened: OpenRuns) -> None:
    first = [cost(2.5, "rubric", arm="probe", context=128), cost(None, arm="probe", context=512)]
    second = [cost(9.5, "matcher", "twice", context=128, arm="probe"), cost(1.5, arm="other", seed=3)]
    table = figure_table(parts_of(opened, first, second))
    assert (table.keys, table.runs, table.judged, table.noted) == (("arm", "context", "seed"), ("a", "b"), True, True)
    assert [(row.facts, row.judge, row.note) for row in table.rows] == [
        (("probe", "128", ""), "rubric / matcher", "twice"),
        (("probe", "512", ""), "", ""),
        (("other", "", "3"), "", ""),
    ]
    assert table.rows[0].cells == (Cell("2.50", "[1.50, 3.50]", "20", "×"), Cell("9.5", "[8.5, 10.5]", "20", "×"))
    assert table.rows[1].cells == (Cell("–", "–", "20"), None)


def test_figures_that_are_the_same_twice_keep_their_rows(opened: OpenRuns) -> None:
    table = figure_table(parts_of(opened, [cost(2.0, arm="probe"), cost(3.0, arm="probe")]))
    assert [row.cells[0] and row.cells[0].value for row in table.rows] == ["2", "3"]


def test_a_pivot_has_columns_by_size(opened: OpenRuns) -> None:
    figures = [cost(float(context), arm=arm, context=context) for arm in ("probe", "guard") for context in (512, 128)]
    runs = opened(("org/a", figures, [CHART]), ("org/b", figures[:1], [CHART]))
    (shared,) = shared_charts(runs, "interval")
    (pivot,) = pivots(shared) or ()
    assert (pivot.corner, pivot.columns) == ("cost (ratio) by context", ("128", "512"))
    assert [(label, [cell and cell.value for cell in cells]) for label, cells in pivot.rows] == [
        ("probe · a", ["128", "512"]),
        ("probe · b", [None, "512"]),
        ("guard · a", ["128", "512"]),
    ]


def test_figures_that_two_keys_do_not_tell_apart_are_no_pivot(opened: OpenRuns) -> None:
    for figures in (
        [cost(1.0, arm="probe")],
        [cost(1.0, arm="a", context=1, seed=0)],
        [cost(1.0, arm="a", context=1)] * 2,
    ):
        (shared,) = shared_charts(opened(("org/a", figures, [CHART])), "interval")
        assert pivots(shared) is None


def test_csv_has_every_digit(opened: OpenRuns) -> None:
    figures = [
        Figure(
            "halted",
            1 / 3,
            (0.1, 0.5),
            9,
            "share",
            {"arm": "probe", "depth": 25, "name": "x"},
            "rubric",
            'a "note", long',
        ),
        Figure("halted", None, None, 0, "share", {"arm": "base"}),
    ]
    assert figures_csv(parts_of(opened, figures)) == (
        "run,name,arm,depth,group_name,value,low,high,answers,unit,judge,note\n"
        'a,halted,probe,25,x,0.3333333333333333,0.1,0.5,9,share,rubric,"a ""note"", long"\n'
        "a,halted,base,,,,,,0,share,,\n"
    )


def test_csv_of_points(opened: OpenRuns) -> None:
    chart = Chart("roc", "R", points={"probe": [(0.0, 0.0), (0.5, 1.0)]}, marks={"threshold": (0.1, 0.9)})
    histogram = Chart("histogram", "H", points={"probe": [3.0, 4.5]})
    runs = opened(("org/a", [], [chart, histogram]))
    first, second = map(points_csv, shared_charts(runs, "interval"))
    assert first == "run,series,x,y\na,probe,0.0,0.0\na,probe,0.5,1.0\na,mark: threshold,0.1,0.9\n"
    assert second == "run,series,x,y\na,probe,3.0\na,probe,4.5\n"
