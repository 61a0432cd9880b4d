"""Make the report: one page that needs no other file, and its figures and tables as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anydepth import __version__
from anydepth.errors import ConfigError
from anydepth.extras import require
from anydepth.report import findings, words
from anydepth.report.looks import Looks
from anydepth.report.palette import PAINTS
from anydepth.report.provenance import headline, provenance
from anydepth.report.runs import Run, in_report_order
from anydepth.report.section import Files, Section, section

INDEX = "index.html"

COST = "latency"
"""The suite that the page shows under the heading `Cost`, after all others."""

OPEN_ROWS = 24
"""A table of at most so many figures is not folded."""

_GENERATOR = '<meta name="generator" content="anydepth'
_TEMPLATES = Path(__file__).parent / "templates"
_OWN = ("figures/*.svg", "figures/*.png", "tables/*.csv")


def render(runs: Sequence[Run], *, title: str | None = None) -> Files:
    """All files of the report; the same runs give the same bytes.

    Raises:
        ConfigError: A chart cannot be drawn from the figures of its suite.
        MissingExtra: matplotlib or Jinja is not installed.
    """
    files: Files = {}
    looks = Looks()
    suites = in_report_order(name for run in runs for name in run.summaries)
    sections = [section(runs, suite, looks, files) for suite in sorted(suites, key=lambda name: name == COST)]
    page = _environment().get_template("report.html.j2").render(_facts(runs, sections, title))
    return {INDEX: page.encode(), **files}


def write(files: Files, folder: Path) -> Path:
    """Write the files of a report; what an earlier report left in the folder goes. Returns the page.

    Raises:
        ConfigError: The folder cannot be written, or holds anything else than a report.
    """
    index = folder / INDEX
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a folder for the report with -o")
    ours = index.is_file() and _GENERATOR in index.read_text("utf-8", errors="replace")[:2000]
    if folder.is_dir() and any(folder.iterdir()) and not ours:
        raise ConfigError(f"{folder} holds other files than a report; give an empty folder or a new one with -o")
    try:
        for own in _OWN:
            (folder / own).parent.mkdir(parents=True, exist_ok=True)
            for old in list(folder.glob(own)):
                old.unlink()
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error}); give another folder with -o") from error
    return index


def _facts(runs: Sequence[Run], sections: Sequence[Section], title: str | None) -> dict[str, Any]:
    tops = [headline(run) for run in runs]
    return {
        "title": title or f"What the guard does: {', '.join(run.label for run in runs)}",
        "named": title is None,
        "version": __version__,
        "runs": runs,
        "top": [(top[0][0], [value for _, value in top]) for top in zip(*tops, strict=True)],
        "sections": sections,
        "key_results": [(each, found) for each in sections if (found := findings.statements(runs, each.suite))],
        "no_effect": findings.without_effect(runs),
        "empty": [(each, count) for each in sections if (count := findings.empty_figures(runs, each.suite))],
        "provenance": [provenance(run) for run in runs],
        "cost": COST,
        "open_rows": OPEN_ROWS,
        "nothing": words.NOTHING,
    }


def _environment() -> Any:
    jinja2 = require("jinja2", extra="report")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["paints"] = "".join(f"{each.name}:light-dark({each.light},{each.dark});" for each in PAINTS)
    environment.filters["counted"] = words.counted
    environment.filters["parts"] = words.in_parts
    return environment
