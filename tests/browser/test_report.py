"""The report in a browser: on a desk and on a phone, in the light and in the dark, by keyboard, on paper, offline."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from anydepth.report import open_runs, render, write
from anydepth.report.charts import NARROW
from anydepth.report.palette import MUTED
from tests.browser.conftest import DESK
from tests.unit.report.made_up import manifest, summaries, write_run

SMALL = {"width": 380, "height": 844}
SHOTS = Path("/tmp/report")

INLINE = """() => document.querySelectorAll('.chart img').forEach(image => {
    const text = new TextDecoder().decode(Uint8Array.from(atob(image.currentSrc.split(',')[1]), c => c.charCodeAt(0)));
    const svg = document.importNode(new DOMParser().parseFromString(text, 'image/svg+xml').documentElement, true);
    svg.style.width = image.getBoundingClientRect().width + 'px';
    svg.style.height = image.getBoundingClientRect().height + 'px';
    image.closest('picture').replaceWith(svg);
})"""
"""Puts each image that is shown into the page as markup, as large as it was, so that its parts can be measured."""

LETTERS = """() => [...document.querySelectorAll('.chart svg text')].map(text => {
    const svg = text.ownerSVGElement, box = svg.getBoundingClientRect(), at = text.getBoundingClientRect();
    const across = at.left < box.left - 2 || at.right > box.right + 2;
    return {
        text: text.textContent,
        cut: across || at.top < box.top - 2 || at.bottom > box.bottom + 2,
        size: parseFloat(getComputedStyle(text).fontSize) * box.width / svg.viewBox.baseVal.width,
    };
})"""
"""Every letter of the figures that are shown: whether it is cut off, and how large it is."""

SHOWN = "images => images.map(image => [image.currentSrc, image.naturalWidth, image.alt])"
"""Of each image: the address that the browser chose, its width in pixels, and its text for those who cannot see it."""
FEW_ROWS = "document.querySelectorAll('tbody tr:nth-child(n+9)').forEach(each => each.remove())"
"""Leaves eight rows of each table: axe looks at every cell, and the rows of a table are of one kind."""

OpenReport = Callable[..., Any]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    small = write_run(folder / "small", summaries(), manifest("org/Tiny-0.5B-Instruct"))
    large = write_run(folder / "large", summaries(0.8, range(2, 30))[:6], {"model": {"name": "org/Tiny-1.5B"}})
    return write(render(open_runs([small, large])), folder / "out")


@pytest.fixture
def open_report(browser: Any, report: Path) -> Iterator[OpenReport]:
    """Opens the report without a network; whatever it logs, and whatever it asks for, fails the test."""
    contexts: list[Any] = []
    troubles: list[str] = []

    def open_(**options: Any) -> Any:
        context = browser.new_context(**{"viewport": DESK, "offline": True, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request", lambda request: None if request.url == report.as_uri() else troubles.append(request.url[:90])
        )
        page.goto(report.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert troubles == []


def unfold(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")


def faults(page: Any, **options: Any) -> str:
    """What axe finds wrong with the page, in words; empty if nothing."""
    found = Axe().run(page, options={"resultTypes": ["violations"], **options})
    return found.generate_report() if found.violations_count else ""


@pytest.mark.parametrize("size", [DESK, SMALL], ids=["desk", "phone"])
def test_it_fits_and_is_accessible(open_report: OpenReport, size: dict[str, int], request: Any) -> None:
    """In both schemes on one load: all rules in the light, and in the dark those that look at colours."""
    page = open_report(viewport=size, color_scheme="light", bypass_csp=True)
    SHOTS.mkdir(exist_ok=True)
    name = request.node.callspec.id
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], "folded: scrolls sideways"
    page.screenshot(path=str(SHOTS / f"{name}-light.png"))
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], "unfolded: scrolls sideways"
    if size is DESK:
        assert not (found := faults(page)), f"unfolded: {found}"
    page.evaluate(FEW_ROWS)
    if size is not DESK:
        assert not (found := faults(page)), f"few rows: {found}"
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=str(SHOTS / f"{name}-dark.png"))
    assert not (found := faults(page, runOnly=["color-contrast", "link-in-text-block"])), f"dark: {found}"
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = false)")
    page.emulate_media(color_scheme="light")
    assert not (found := faults(page)), f"folded: {found}"


@pytest.mark.parametrize(("size", "wide"), [(DESK, True), (SMALL, False)], ids=["desk", "phone"])
def test_each_figure_is_shown_once_and_whole(open_report: OpenReport, size: dict[str, int], wide: bool) -> None:
    page = open_report(viewport=size)
    charts, visible = page.locator("figure.chart:has(img)").count(), page.locator("figure.chart img:visible").count()
    assert charts == visible > 8
    shown = page.locator(".chart > picture img").evaluate_all(SHOWN)
    assert len(shown) > 8 and all((each[1] > NARROW) == wide and each[2] for each in shown)
    page.evaluate(INLINE)
    found = page.evaluate(LETTERS)
    assert len(found) > 200
    assert [each["text"] for each in found if each["cut"]] == [], "texts that stick out of their figure"
    assert min(each["size"] for each in found) >= 10, "pixels of the smallest letters"


def test_wide_things_scroll_within_the_page(open_report: OpenReport) -> None:
    page = open_report(viewport=SMALL)
    wide = page.locator("#attacks .scroll").last
    wide.focus()
    before = wide.evaluate("element => [element.scrollWidth > element.clientWidth, element.scrollLeft]")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("element => element.scrollLeft > 0", arg=wide.element_handle())
    assert before == [True, 0]


@pytest.mark.parametrize("size", [DESK, SMALL], ids=["desk", "phone"])
def test_figures_take_the_colours_of_the_page(open_report: OpenReport, size: dict[str, int]) -> None:
    for scheme, other in (("light", "dark"), ("dark", "light")):
        page = open_report(color_scheme=scheme, viewport=size)
        body = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert (sum(body) > 600) == (scheme == "light")
        for address, _, _ in page.locator(".chart img").evaluate_all(SHOWN):
            drawn = base64.b64decode(address.partition(",")[2]).decode()
            assert getattr(MUTED, scheme) in drawn and getattr(MUTED, other) not in drawn


def test_a_walk_by_keyboard(open_report: OpenReport) -> None:
    page = open_report()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["y"] >= 0
    page.locator("nav a[href='#interval']").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("Math.abs(document.querySelector('#interval').getBoundingClientRect().top) < 60")
    fold = page.locator("#deep-prefill details").first
    fold.locator("summary").focus()
    page.keyboard.press("Enter")
    assert fold.evaluate("element => element.open")
    assert fold.locator("tbody tr").count() == 68


def test_a_table_can_be_saved_without_any_other_file(open_report: OpenReport, report: Path) -> None:
    page = open_report(accept_downloads=True)
    link = page.locator("a[download='attacks.csv']")
    with page.expect_download() as found:
        link.click()
    assert found.value.suggested_filename == "attacks.csv"
    assert Path(found.value.path()).read_bytes() == (report.parent / "tables" / "attacks.csv").read_bytes()


def test_paper_is_light_and_has_everything(open_report: OpenReport) -> None:
    page = open_report(color_scheme="dark", viewport={"width": 720, "height": 1000})
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    for address, width, _ in page.locator(".chart > picture img").evaluate_all(SHOWN):
        assert MUTED.light in base64.b64decode(address.partition(",")[2]).decode() and width > NARROW
    row = page.locator("#deep-prefill details tbody tr").last
    assert row.evaluate("element => element.getBoundingClientRect().height > 0"), "folded tables are printed"
