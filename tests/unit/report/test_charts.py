"""Every kind of chart at both widths, with what real data has: gaps, one value, names, negative numbers."""

import warnings
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
import pytest

from anydepth.evals.figure import ChartKind
from anydepth.report.charts import NARROW, WIDE, draw, histogram
from anydepth.report.drawing import Dot, Drawing, Panel, Series
from anydepth.report.svg import svg_file


def drawn(kind: ChartKind, *panels: Panel, width: int = WIDE, **options) -> list[str]:
    """Texts of the figure; a warning of the library fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw(Drawing(kind, panels, **options), width)
        root = ElementTree.fromstring(svg_file(figure, "a"))
    return ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]


def series(label: str, values: Sequence[tuple], look: int = 0) -> Series:
    return Series(label, look, look, tuple(Dot(*value) for value in values))


def panel(*found: Series, unit: str = "share", title: str = "", **options) -> Panel:
    return Panel(title, unit, found, **options)


both = pytest.mark.parametrize("width", [WIDE, NARROW])


@both
def test_lines_with_gaps_and_a_depth_of_zero(width: int) -> None:
    gap = series("probe", [(0, 0.9, 0.8, 0.95), (5, None), (2500, 0.8, 0.7, 0.9)])
    texts = drawn("line", panel(gap, series("base", [(0, 0.5)], 1)), width=width, log_x=True, x="depth (tokens)")
    assert {"probe", "base", "0", "2,500", "100 %", "depth (tokens)", "share of answers"} <= set(texts)


def test_whiskers_of_many_lines_stand_side_by_side() -> None:
    found = [series(str(n), [(0, 0.5, 0.4, 0.6), (400, 0.5, 0.4, 0.6)], n) for n in range(5)]
    (axes,) = draw(Drawing("line", (panel(*found),))).axes
    low, high = axes.get_xlim()
    assert low < 0 and high > 400
    at = [each.get_transform().transform(each.get_paths()[0].vertices)[0, 0] for each in axes.collections]
    assert len(at) == 5 and min(np.diff(at)) > 2
    assert np.median(at) == pytest.approx(axes.transData.transform((0, 0))[0])


@both
def test_lines_over_names_and_below_zero(width: int) -> None:
    found = series("change", [("before the change", -0.2, -0.3, -0.1), ("after the change", 0.1, 0.0, 0.2)])
    texts = drawn("line", panel(found), width=width)
    assert {"before the change", "after the change", "−20 %"} <= set(texts)
    assert "change" not in texts, "one line needs no legend"


@pytest.mark.parametrize("kind", ["line", "bars", "heatmap"])
@both
def test_nothing_but_gaps(kind: ChartKind, width: int) -> None:
    texts = drawn(kind, panel(series("5", [(0, None), (9, None)])), width=width)
    assert ("nothing to measure" in texts) == (kind == "bars")


@both
def test_lines_with_one_dot_only(width: int) -> None:
    assert "25" in drawn(
        "line", panel(series("probe", [(25, 12.0, 11.0, 13.0)]), unit="tokens"), width=width, log_x=True
    )


def test_nothing_but_zeros_has_an_axis_from_zero() -> None:
    texts = drawn("line", panel(series("probe", [(0, 0.0, 0.0, 0.0), (9, 0.0, 0.0, 0.0)]), unit="tokens"))
    assert {"0", "1"} <= set(texts) and not any(text.startswith("−") for text in texts)


@both
def test_labels_of_a_crowded_axis_leave_room(width: int) -> None:
    depths = [*range(0, 40, 2), 1000, 2500]
    texts = drawn("line", panel(series("probe", [(depth, 0.5) for depth in depths])), width=width, log_x=True)
    shown = [text for text in texts if text.replace(",", "").isdigit()]
    assert {"0", "2,500"} <= set(shown)
    assert len(shown) < len(depths)


@both
def test_bars_have_their_names_and_numbers(width: int) -> None:
    one = series("probe", [("XSTest", 0.02, 0.0, 0.07), ("GSM8K", 0.0, 0.0, 0.03)])
    two = series("base · a model of quite a long name, and then some", [("XSTest", None), ("GSM8K", 0.25)], 1)
    texts = drawn("bars", panel(one, two), width=width)
    assert {"XSTest", "GSM8K", "probe", "2.0\u00a0%", "0.0\u00a0%", "25.0\u00a0%", "nothing to measure"} <= set(texts)
    assert any(text.startswith("base · a model") and text.endswith("…") for text in texts)
    assert texts.index("XSTest") < texts.index("GSM8K")


@both
def test_bars_at_numbers_say_of_what(width: int) -> None:
    two = [series(arm, [(25, 0.5), (50, 0.4)], look) for look, arm in enumerate(("probe", "base"))]
    assert {"depth 25", "depth 50"} <= set(drawn("bars", panel(*two), width=width, x="depth (tokens)"))


@both
def test_bars_of_differences_and_of_panels(width: int) -> None:
    change = panel(series("change", [("a", -0.05, -0.1, 0.0), ("b", 0.05, 0.0, 0.1)]), title="share")
    tokens = panel(series("leak", [("a", 30.0, 20.0, 40.0)]), unit="tokens", title="tokens", measure="leak")
    texts = drawn("bars", change, tokens, width=width)
    assert {"share", "tokens", "−5.0\u00a0%", "leak (tokens)"} <= set(texts)


def test_a_heat_map_is_as_wide_as_its_columns() -> None:
    few = draw(Drawing("heatmap", (panel(series("5", [(0, 0.5), (9, None)]), unit="auroc"),)))
    many = panel(*(series(str(row), [(n, 0.5 + n / 200) for n in range(40)]) for row in (1, 2)), unit="auroc")
    assert few.get_figwidth() < 4 < 20 < draw(Drawing("heatmap", (many,))).get_figwidth()
    texts = drawn("heatmap", many, x="depth (tokens)", y="layer")
    assert {"0.50", "0.69", "layer", "39"} <= set(texts)
    assert "–" in drawn("heatmap", panel(series("5", [(0, 0.5), (9, None)]), unit="auroc"))


def test_heat_maps_of_every_unit() -> None:
    assert "12.5" in drawn("heatmap", panel(series("5", [(0, 0.125)])))
    assert "100" in drawn("heatmap", panel(series("5", [(0, 1.0)])))
    assert "3.25" in drawn("heatmap", panel(series("a", [("x", 3.25), ("y", 4.0)]), unit="ratio"))


@both
def test_clouds_say_which_is_which(width: int) -> None:
    cloud = panel(series("harmful", [(0.1, 0.2), (3.0, 1.0)]), series("benign", [(-1.0, 0.0)], 1), title="a")
    assert {"harmful", "benign", "first axis", "a"} <= set(drawn("scatter", cloud, cloud, width=width))


@both
def test_marks_are_named_beside_them_or_in_the_legend(width: int) -> None:
    trade = series("probe", [(0.0, 0.5), (1.0, 0.9)])
    near = panel(trade, marks={"25 tokens": (1.0, 0.9)})
    clash = panel(trade, marks={"one": (0.5, 0.7), "two": (0.51, 0.7)})
    long = panel(trade, marks={"a mark whose name is longer than the figure is wide, by far" * 2: (0.5, 0.7)})
    for each, names in ((near, {"25 tokens"}), (clash, {"one", "two"}), (long, set(long.marks))):
        assert names <= set(drawn("scatter", each, width=width, x="overhead", y="halted"))


@pytest.mark.parametrize("log", [False, True])
@both
def test_a_curve_with_its_operating_point(width: int, log: bool) -> None:
    curve = series("probe", [(0.0, 0.0), (0.0, 0.4), (0.004, 0.8), (1.0, 1.0)])
    texts = drawn(
        "roc", panel(curve, marks={"threshold": (0.004, 0.8)}), width=width, log_x=log, x="false-positive rate"
    )
    assert {"threshold", "false-positive rate", "0 %", "100 %"} <= set(texts)
    assert ("10 %" in texts) == log


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[25.0], [0.0, 0.0], [0.5, 0.25, 3.75], [0.0, 1.0, 2500.0], list(range(90))])
@both
def test_histograms(values: list[float], log: bool, width: int) -> None:
    found = [series(name, [(value,) for value in values], look) for look, name in enumerate(("probe", "base"))]
    texts = drawn("histogram", panel(*found), width=width, log_x=log, x="leak (tokens)")
    assert {"leak (tokens)", "share of answers"} <= set(texts)
    assert sum(f"n = {len(values)}, median" in text for text in texts) == 2


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[25.0], [0.0, 0.0, 3.0], [0.1, 0.3], [7.0, 2500.0, 3.0], [-1.5, 2.5]])
def test_no_value_falls_out_of_its_bins(values: list[float], log: bool) -> None:
    edges = histogram.edges_of(np.array(values), log=log)
    counts, _ = np.histogram(values, edges)
    assert counts.sum() == len(values)


def test_a_users_own_settings_do_not_matter() -> None:
    import matplotlib

    found = panel(series("probe", [(0, 0.5), (9, 0.4)]))
    plain = svg_file(draw(Drawing("line", (found,))), "a")
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.grid": False, "text.usetex": False}):
        assert svg_file(draw(Drawing("line", (found,))), "a") == plain
        assert matplotlib.rcParams["font.size"] == 30
