"""What a chart shows: the data taken out of runs, before anything is drawn."""

from collections.abc import Sequence

import pytest

from anydepth.evals.figure import Chart, Figure
from anydepth.report.drawing import Dot, Drawing, Panel, value_axis
from anydepth.report.looks import Looks
from anydepth.report.palette import MARKERS, SERIES, unlike
from anydepth.report.panels import drawing, shared_charts
from anydepth.report.runs import Run
from tests.unit.report.conftest import OpenRuns


def share(value: float | None, unit: str = "share", name: str = "halted", **group: str | int | float) -> Figure:
    return Figure(name, value, None if value is None else (value / 2, value), 40, unit, group)


def shown(runs: Sequence[Run], looks: Looks | None = None) -> Drawing:
    (shared,) = shared_charts(runs, "interval")
    drawn = drawing(shared, looks or Looks())
    assert drawn is not None
    return drawn


def labels(panel: Panel) -> list[str]:
    return [series.label for series in panel.series]


def test_a_line_has_its_dots_in_order_with_their_intervals(opened: OpenRuns) -> None:
    figures = [share(0.5, depth=100, arm="probe"), share(None, depth=25, arm="probe"), share(1.0, depth=0, arm="probe")]
    runs = opened(("org/a", figures, [Chart("line", "L", ("halted",), x="depth", by="arm", log_x=True)]))
    drawn = shown(runs)
    (panel,) = drawn.panels
    (series,) = panel.series
    assert series.label == "probe"
    assert series.dots == (Dot(0, 1.0, 0.5, 1.0, 40), Dot(25, None, None, None, 40), Dot(100, 0.5, 0.25, 0.5, 40))
    assert (drawn.x, drawn.log_x, value_axis(panel)) == ("depth (tokens)", True, "halted (share of answers)")


def test_places_that_are_names_follow_the_numbers(opened: OpenRuns) -> None:
    figures = [share(0.1, depth=depth) for depth in ("end", 100, 5, "after the end")]
    (panel,) = shown(opened(("org/a", figures, [Chart("line", "L", ("halted",), x="depth")]))).panels
    assert [dot.x for dot in panel.series[0].dots] == [5, 100, "end", "after the end"]


def test_runs_stand_side_by_side(opened: OpenRuns) -> None:
    figures = [share(0.5, depth=depth, arm=arm) for arm in ("base", "probe") for depth in (0, 9)]
    chart = Chart("line", "L", ("halted",), x="depth", by="arm")
    (panel,) = shown(opened(("org/a", figures, [chart]), ("org/b", figures[::-1], [chart]))).panels
    assert labels(panel) == ["base · a", "base · b", "probe · a", "probe · b"]
    looks, dashes = [series.look for series in panel.series], [series.dash for series in panel.series]
    assert looks[0] == looks[1] != looks[2] == looks[3]
    assert dashes == [0, 1, 0, 1]


def test_many_lines_of_several_runs_get_a_panel_a_run(opened: OpenRuns) -> None:
    figures = [share(0.5, depth=depth, arm=f"arm {n}") for n in range(4) for depth in (0, 9)]
    chart = Chart("line", "L", ("halted",), x="depth", by="arm")
    drawn = shown(opened(("org/a", figures, [chart]), ("org/b", figures, [chart])))
    assert [panel.title for panel in drawn.panels] == ["a", "b"]
    assert labels(drawn.panels[0]) == labels(drawn.panels[1]) == ["arm 0", "arm 1", "arm 2", "arm 3"]


def test_units_do_not_share_an_axis(opened: OpenRuns) -> None:
    figures = [share(0.5, interval=5), share(12.0, "tokens", "leak", interval=5)]
    drawn = shown(opened(("org/a", figures, [Chart("line", "L", ("halted", "leak"), x="interval")])))
    assert [(panel.unit, value_axis(panel)) for panel in drawn.panels] == [
        ("share", "halted (share of answers)"),
        ("tokens", "leak (tokens)"),
    ]


def test_a_group_that_the_chart_does_not_tell_apart_gets_panels(opened: OpenRuns) -> None:
    figures = [share(0.5, steps=s, arm="probe", data=data, seed=1) for data in ("mild", "harsh") for s in (0, 9)]
    drawn = shown(opened(("org/a", figures, [Chart("line", "L", ("halted",), x="steps", by="arm")])))
    assert [(panel.title, labels(panel)) for panel in drawn.panels] == [("mild", ["probe"]), ("harsh", ["probe"])]


def test_the_whole_is_shown_and_not_its_parts(opened: OpenRuns) -> None:
    parts = [share(0.1, depth=0, arm="probe", source=source) for source in ("one", "two")]
    figures = [*parts, share(0.7, depth=0, arm="probe"), share(0.3, depth=0, arm="base")]
    drawn = shown(opened(("org/a", figures, [Chart("line", "L", ("halted",), x="depth", by="arm")])))
    (panel,) = drawn.panels
    assert [(series.label, series.dots[0].value) for series in panel.series] == [("probe", 0.7), ("base", 0.3)]


def test_a_key_of_one_arm_only_does_not_part_the_chart(opened: OpenRuns) -> None:
    figures = [share(0.1, depth=0, arm="base"), share(0.9, depth=0, arm="probe", interval=25)]
    (panel,) = shown(opened(("org/a", figures, [Chart("line", "L", ("halted",), x="depth", by="arm")]))).panels
    assert (panel.title, labels(panel)) == ("", ["base", "probe"])


def test_bars_without_x_stand_by_their_name(opened: OpenRuns) -> None:
    figures = [share(0.1, name="refused_itself"), share(0.9, name="halted")]
    (panel,) = shown(opened(("org/a", figures, [Chart("bars", "B", ("halted", "refused_itself"))]))).panels
    assert [dot.x for dot in panel.series[0].dots] == ["refused itself", "halted"]


def test_bars_of_one_arm_say_which(opened: OpenRuns) -> None:
    figures = [share(0.1, set="xstest", arm="base"), share(0.2, name="either", set="xstest", arm="probe")]
    drawn = shown(opened(("org/a", figures, [Chart("bars", "B", ("halted", "either"), x="set", by="arm")])))
    assert [panel.title for panel in drawn.panels] == ["halted · base", "either · probe"]


def test_a_heat_map_has_a_panel_a_run_and_rows_in_order(opened: OpenRuns) -> None:
    figures = [share(n / 100, "auroc", "auroc", layer=layer, depth=0) for n, layer in enumerate((10, 9, 2))]
    chart = Chart("heatmap", "H", ("auroc",), x="depth", by="layer")
    drawn = shown(opened(("org/a", figures, [chart]), ("org/b", figures[:1], [chart])))
    assert [(panel.title, labels(panel)) for panel in drawn.panels] == [("a", ["2", "9", "10"]), ("b", ["10"])]
    assert drawn.panels[0].series[0].dots[0].value == 0.02
    assert (drawn.x, drawn.y) == ("depth (tokens)", "layer")


def test_projections_of_runs_share_no_axes_and_curves_do(opened: OpenRuns) -> None:
    points = {"probe": [(0.0, 0.0), (1.0, 1.0)]}
    marks = {"threshold": (0.1, 0.9)}
    scatter, roc = Chart("scatter", "S", points=points), Chart("roc", "R", points=points, marks=marks)
    runs = opened(("org/a", [], [scatter, roc]), ("org/b", [], [scatter, roc]))
    clouds, curves = (drawing(shared, Looks()) for shared in shared_charts(runs, "interval"))
    assert clouds is not None
    assert curves is not None
    assert [(panel.title, labels(panel)) for panel in clouds.panels] == [("a", ["probe"]), ("b", ["probe"])]
    (panel,) = curves.panels
    assert labels(panel) == ["probe · a", "probe · b"]
    assert panel.marks == {"threshold · a": (0.1, 0.9), "threshold · b": (0.1, 0.9)}
    assert (curves.x, curves.y) == ("false-positive rate", "true-positive rate")


def test_a_histogram_leaves_out_what_has_no_numbers(opened: OpenRuns) -> None:
    drawn = shown(opened(("org/a", [], [Chart("histogram", "H", x="leak", points={"probe": [3, 1], "base": []})])))
    assert labels(drawn.panels[0]) == ["probe"]
    assert [dot.x for dot in drawn.panels[0].series[0].dots] == [3, 1]


def test_nothing_to_draw_is_none(opened: OpenRuns) -> None:
    runs = opened(("org/a", [share(0.5, arm="probe")], [Chart("line", "L", ("halted",), x="depth")]))
    (shared,) = shared_charts(runs, "interval")
    assert drawing(shared, Looks()) is None


def test_charts_of_the_same_title_are_put_together_in_their_order(opened: OpenRuns) -> None:
    first, second = Chart("bars", "Same", ("halted",)), Chart("bars", "Other", ("halted",))
    runs = opened(("org/a", [share(0.5)], [first, first]), ("org/b", [share(0.5)], [second, first]))
    found = [
        (shared.chart.title, [part.run.label for part in shared.parts]) for shared in shared_charts(runs, "interval")
    ]
    assert found == [("Same", ["a", "b"]), ("Same", ["a"]), ("Other", ["b"])]


def test_one_name_has_one_look_all_over_the_report(opened: OpenRuns) -> None:
    figures = [share(0.5, depth=0, arm=arm) for arm in ("base", "probe")]
    charts = [
        Chart("line", "L", ("halted",), x="depth", by="arm"),
        Chart("roc", "R", points={"probe": [(0.0, 0.0)]}),
        Chart("histogram", "H", points={"unknown": [1.0]}),
    ]
    looks = Looks()
    drawn = [drawing(each, looks) for each in shared_charts(opened(("org/a", figures, charts)), "interval")]
    line, roc, histogram = (each.panels[0].series for each in drawn if each)
    assert line[1].look == roc[0].look != line[0].look
    assert histogram[0].look == 0


def test_series_of_a_chart_differ_in_colour_and_marker() -> None:
    looks = Looks()
    looks.of("arm", [(f"arm {n}",) for n in range(8)])
    found = looks.of("arm", [("arm 0",), ("arm 1",), ("new",)])
    assert unlike(found["new",], [found["arm 0",], found["arm 1",]])
    assert looks.of("arm", [("new",)])["new",] == found["new",]
    many = looks.of("many", [(f"{n}",) for n in range(40)]).values()
    signs = {(look % len(SERIES), look % len(MARKERS)) for look in many}
    assert len(signs) == 40


@pytest.mark.parametrize("surface", ["light", "dark"])
def test_every_colour_stands_out_from_its_page(surface: str) -> None:
    from anydepth.report.palette import MUTED, SURFACE, TEXT

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(paint: object) -> float:
        ends = sorted((luminance(getattr(paint, surface)), luminance(getattr(SURFACE, surface))))
        return (ends[1] + 0.05) / (ends[0] + 0.05)

    assert {paint.name: contrast(paint) for paint in SERIES if contrast(paint) < 3} == {}
    assert min(contrast(TEXT), contrast(MUTED)) >= 4.5
