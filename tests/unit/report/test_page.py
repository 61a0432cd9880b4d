"""The page: complete, in order, alone, and with nothing in it that a browser would run."""

import base64
import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from anydepth.errors import ConfigError
from anydepth.evals.figure import Chart, Figure
from anydepth.report import Run, open_runs, render, write
from tests.unit.report.conftest import OpenRuns
from tests.unit.report.made_up import SCRIPT, bare, interval, manifest, over_refusal, write_run

ROOT = Path(__file__).resolve().parents[3]


class Page(HTMLParser):
    """What a test asks of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        found = dict(attrs)
        self.ids += [str(found["id"])] if "id" in found else []
        self.links += [
            str(found[name]) for name in ("href", "src", "srcset", "action", "data", "xlink:href") if name in found
        ]
        self._open.append(tag)
        if tag in ("td", "th", "li", "p", "dt", "summary", "h1", "h2", "h3", "h4", "pre"):
            self.words.append(" ")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.words.append(data)
        level = next((int(tag[1]) for tag in self._open if re.fullmatch("h[1-6]", tag)), 0)
        if level:
            self.headings[-1] = (level, self.headings[-1][1] + data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def html(files: dict[str, bytes]) -> str:
    return files["index.html"].decode()


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_sections_come_in_order_with_the_cost_and_the_limits_last(page: Page) -> None:
    assert [" ".join(title.split()) for level, title in page.headings if level == 2] == [
        "Contents",
        "Key results",
        "Harmful answers forced to a depth",
        "Attacks",
        "Over-refusal",
        "Utility",
        "Separability of hidden states",
        "How often to check",
        "Fine-tuning",
        "The probe's direction",
        "Cost What a check costs",
        "Where it does not hold",
        "How to make it again",
    ]


def test_headings_skip_no_level(page: Page) -> None:
    levels = [level for level, _ in page.headings]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_it_needs_nothing_from_elsewhere(page: Page, html: str) -> None:
    outside = [link for link in page.links if not link.startswith(("#", "data:"))]
    assert outside == []
    assert page.tags["script"] == page.tags["iframe"] == 0
    addresses = set(re.findall(r"https?://[^\"'\s<)]+", html))
    assert addresses == set()
    assert "@import" not in html and "default-src 'none'" in html


def test_every_link_leads_somewhere_and_no_id_is_twice(page: Page) -> None:
    assert [name for name, times in Counter(page.ids).items() if times > 1] == []
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_a_note_is_text_whatever_is_in_it(html: str, page: Page) -> None:
    assert SCRIPT not in html
    assert SCRIPT in page.text
    assert "&lt;script&gt;alert" in html


def test_whatever_a_run_says_is_escaped(opened: OpenRuns) -> None:
    evil = f'"><img src=x onerror=alert(1)>{SCRIPT}`<b>`'
    figure = Figure(evil, 0.5, (-0.1, 0.6), 9, evil, {evil: evil, "depth": 0}, evil, evil)
    empty = Figure(evil, None, None, 0, "auroc", {"depth": 0})
    charts = [
        Chart("line", evil, (evil,), x="depth", by=evil, caption=evil),
        Chart("table", evil, (evil,), x="depth", by=evil, caption=evil),
        Chart("scatter", evil, points={evil: [(0.0, 1.0)]}, marks={evil: (0.0, 1.0)}, caption=evil),
        Chart("line", evil, ("absent",), x=evil, caption=evil),
    ]
    runs = opened((evil, [figure, empty], charts), (f"org/{evil}", [figure], charts))
    (evil_run, *_) = runs
    assert isinstance(evil_run, Run)
    html = render(runs, title=evil)["index.html"].decode()
    page = Page(html)
    assert page.tags["script"] == 0 and "<img src=x" not in html
    assert page.tags["code"] > 0
    assert SCRIPT in page.text


def test_key_results_are_the_figures_own(page: Page) -> None:
    text = page.text[page.text.index("Key results The main") : page.text.index("The paper:")]
    assert "Refused at depth 2,500 n = 120, judged by refusal matcher" in text
    assert "probe 86.7\u00a0% [79.3, 92.2] 67.5\u00a0% [58.3, 75.8]" in text.replace("\u00a0", " ").replace(
        " %", "\u00a0%"
    )
    assert "and 4 more below" in text


def test_tables_have_interval_number_unit_judge_and_note(html: str) -> None:
    row = next(each for each in html.split("<tr>") if "40 answers joined" in each)
    text = Page(row).text.replace("\u00a0", " ")
    assert text.startswith("refused no guard 1,000 1.7 % [0.2, 5.9] 120 1.7 % [0.2, 5.9] 120 share refusal matcher 40")


def test_what_no_run_has_is_said(page: Page) -> None:
    assert page.text.count("Not measured for Tiny-1.5B.") == 3
    assert "Figures without a value: Harmful answers forced to a depth 2, Separability of hidden states 2," in page.text


def test_limits_are_last_with_what_shows_no_effect(page: Page) -> None:
    text = page.text[page.text.rindex("Where it does not hold") :]
    for limit in (
        "At depth 0 the probe adds nothing",
        "Budgets are a hundredth",
        "Random tokens in the place",
        "Not run.",
    ):
        assert limit in text
    assert "interval of 6 figures includes no effect" in text.replace("\u00a0", " ")
    assert "difference, gsm8k −0.4 % [−1.4, 0.6] 0 (no difference)" in text.replace("\u00a0", " ")
    assert "AUROC, random tokens 0.530 [0.440, 0.610] 0.5 (chance)" in text


def test_a_report_without_limits_says_so(opened: OpenRuns) -> None:
    page = Page(render(opened(("org/a", [Figure("halted", 0.5, (0.4, 0.6), 9)], [])))["index.html"].decode())
    assert "No suite names a limit." in page.text
    assert "no effect" not in page.text and "Nothing to measure" not in page.text


def test_what_a_manifest_does_not_say_is_not_recorded(page: Page) -> None:
    top = page.text[: page.text.index("Contents")]
    assert "Model org/Tiny-0.5B org/Tiny-1.5B" in top
    assert "Probe tiny-0.5b.safetensors, shipped, reads 14.input_layernorm none" in top
    assert "Measured 14 January 2026 not recorded" in top
    assert "Sample full, 120 answers a suite at most not recorded" in top
    end = page.text[page.text.index("How to make it again Beside") :]
    assert "pairs_deep_validation 400 0123456789abcdef" in end
    assert "deep-prefill 13 min 32 s 14 January 2026, 09:25 UTC" in end
    assert "anydepth eval org/Tiny-0.5B --suite deep-prefill" in end
    assert "Command not recorded Data: not recorded." in end
    assert "options · seed 7" in end and "model · revision none" in end and "versions not recorded" in end


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"options": {"quick": True}}, "Sample quick: small samples"),
        ({"options": {"quick": False}}, "Sample full Judge"),
        ({"begun": "yesterday"}, "Measured yesterday"),
        ({"probe": "mine.safetensors"}, "Probe mine.safetensors"),
        ({"probe": {"threshold": 0.5}}, "Probe not recorded"),
        ({"probe": {"given": True, "reads": ["3.output"]}}, "Probe given, reads 3.output"),
        ({"data": "none", "suites": {"latency": 3}}, "latency not recorded not recorded"),
        ({"own": {"key": [1, True, {}]}}, "own · key 1, yes, none"),
    ],
)
def test_manifests_of_all_kinds(tmp_path: Path, facts: dict[str, Any], words: str) -> None:
    runs = open_runs([write_run(tmp_path / "run", [bare()], manifest("org/a", **facts))])
    assert words in Page(render(runs)["index.html"].decode()).text


def test_figures_and_tables_are_files_too(files: dict[str, bytes], two_runs: tuple[Run, ...]) -> None:
    charts = [
        f"{suite}-{number}-"
        for suite, summary in two_runs[0].summaries.items()
        for number, chart in enumerate(summary.charts, 1)
        if chart.kind != "table"
    ]
    drawn = sorted(name.removeprefix("figures/") for name in files if name.startswith("figures/"))
    assert len(drawn) == 2 * len(charts)
    assert all(sum(name.startswith(chart) for name in drawn) == 2 for chart in charts)
    assert all(
        content.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
        for name, content in files.items()
        if "figures" in name
    )
    assert set(two_runs[0].summaries) <= {name[7:-4] for name in files if name.startswith("tables/")}
    table = files["tables/attacks.csv"].decode().splitlines()
    assert table[0] == "run,name,attack,arm,value,low,high,answers,unit,judge,note"
    assert table[1].startswith("Tiny-0.5B,attack success,stored prompts,no guard,0.2,0.10")
    assert len(table) == 25


def test_tables_can_be_saved_from_the_page_alone(page: Page, files: dict[str, bytes]) -> None:
    saved = {base64.b64decode(link.partition(",")[2]) for link in page.links if link.startswith("data:text/csv")}
    assert saved == {content for name, content in files.items() if name.startswith("tables/")}


def test_the_same_runs_give_the_same_bytes_also_in_another_process(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [over_refusal(0.01, 50), interval(40)], manifest("org/a"))
    files, again = render(open_runs([folder])), render(open_runs([folder]))
    assert [name for name in {**files, **again} if files.get(name) != again.get(name)] == []
    assert sum(name.endswith(".svg") for name in files) == 4
    code = (
        "import hashlib, sys; from pathlib import Path; from anydepth.report import *\n"
        "files = render(open_runs([Path(sys.argv[1])]))\n"
        "print(hashlib.sha256(b''.join(name.encode() + files[name] for name in files)).hexdigest())"
    )
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # another order of sets than here
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": seed},
        text=True,
        check=True,
        capture_output=True,
    )
    here = hashlib.sha256(b"".join(name.encode() + files[name] for name in files)).hexdigest()
    assert done.stdout.strip() == here


def test_an_older_report_is_replaced_and_nothing_else(tmp_path: Path, opened: OpenRuns) -> None:
    runs = opened(("org/a", [Figure("halted", 0.5, (0.4, 0.6), 9)], [Chart("bars", "B", ("halted",))]))
    files, out = render(runs), tmp_path / "deep" / "out"
    assert write(files, out) == out / "index.html"
    (out / "figures" / "stale.svg").write_text("<svg/>")
    (out / "figures" / "mine.txt").write_text("kept")
    write(files, out)
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == sorted(
        [*files, "figures/mine.txt"]
    )
    assert all((out / name).read_bytes() == content for name, content in files.items())


def test_folders_that_hold_something_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for folder, message in ((tmp_path, "holds other files than a report"), (tmp_path / "notes.txt", "is a file")):
        with pytest.raises(ConfigError, match=message):
            write({"index.html": b""}, folder)
    (tmp_path / "index.html").write_text("<title>My page</title>")
    with pytest.raises(ConfigError, match="give an empty folder or a new one with -o"):
        write({"index.html": b""}, tmp_path)
    assert (tmp_path / "index.html").read_text() == "<title>My page</title>"
    with pytest.raises(ConfigError, match="cannot be written"):
        write({"index.html": b""}, tmp_path / "notes.txt" / "below")
