"""Fill the tables about the shipped probes in docs/probes.md and docs/results.md from benchmarks/probes/*/fit.json.

    python benchmarks/probe_tables.py            writes the pages
    python benchmarks/probe_tables.py --check    exits with 1 if they are not up to date

A block `<!-- NAME:begin -->` … `<!-- NAME:end -->` is replaced by the table of that name below. No number is typed by
hand.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROBES = ROOT / "benchmarks" / "probes"
NAMES = {
    "qwen2.5-coder-1.5b-instruct": "Qwen2.5-Coder-1.5B",
    "qwen2.5-coder-0.5b-instruct": "Qwen2.5-Coder-0.5B",
    "smollm2-135m-instruct": "SmolLM2-135M",
}
"""Folder of a probe -> what its column is called; in the order of the columns."""

Figures = Mapping[str, Any]
Row = tuple[str, str]


def share(found: Figures) -> str:
    """A rate with its exact interval, in per cent; a dash where there is no answer."""
    if not found["answers"]:
        return "–"
    low, high = found["interval"]
    return f"{100 * found['rate']:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def value(found: Figures, signed: bool = False) -> str:
    """An AUROC, or a difference of two, with its interval."""
    ends = [f"{end:+.3f}" if signed else f"{end:.3f}" for end in found["interval"]]
    return f"{found['value']:+.3f} ({ends[0]} to {ends[1]})" if signed else f"{found['value']:.3f} ({'–'.join(ends)})"


def points(found: Figures) -> str:
    """A difference of two shares with its interval, in percentage points."""
    low, high = (100 * end for end in found["interval"])
    return f"{100 * found['value']:+.1f} ({low:+.1f} to {high:+.1f})"


def beyond(figures: Figures) -> Iterator[Row]:
    """What a probe adds to its control, a probe that judges the request alone."""
    order = [*figures["crossed"], *(name for name in figures["pairs"] if name not in figures["crossed"])]
    for name in order:
        pair = figures["pairs"][name]
        yield f"**{name}**: AUROC", value(pair["auroc"])
        yield "… of the request alone", value(pair["control"]["auroc"])
        yield "… added", value(pair["added"]["auroc"], signed=True)
        yield "halted", share(pair["halted"])
        yield "… by the request alone", share(pair["control"]["halted"])
        yield "… added, points", points(pair["added"]["halted"])
        if (deep := pair.get("from_depth_25")) is not None:
            yield "judged from depth 25 on alone: AUROC", value(deep["auroc"])
            yield "… halted", share(deep["halted"])


def shipped(figures: Figures) -> Iterator[Row]:
    """What a probe halts."""
    for name, found in figures["halted"].items():
        yield f"halted at the threshold, {name}", share(found)
    for point in figures["prefill"]["long harmful"]:
        tokens = f"{point['depth']} tokens" if isinstance(point["depth"], int) else "whole"
        yield f"… long harmful forced as a prefill, {tokens}", share(point["halted"])
    for name, found in figures["false_positives"].items():
        yield f"harmless halted, threshold set on other prompts, {name}", share(found)


TABLES: Mapping[str, tuple[str, Callable[[Figures], Iterator[Row]]]] = {
    "shipped": ("probes.md", shipped),
    "beyond": ("results.md", beyond),
}


def drawn(rows_of: Callable[[Figures], Iterator[Row]]) -> str:
    """The table as Markdown: a column a probe."""
    columns: list[Sequence[Row]] = []
    for folder in NAMES:
        record = json.loads((PROBES / folder / "fit.json").read_text(encoding="utf-8"))
        columns.append(list(rows_of(record["figures"])))
    labels = [label for label, _ in max(columns, key=len)]
    if any([label for label, _ in column] != labels for column in columns):
        raise SystemExit("the probes were not measured on the same sets: make all with one recipe")
    lines = [f"| | {' | '.join(NAMES.values())} |", "|---|" + "---|" * len(NAMES)]
    lines += [
        f"| {label} | {' | '.join(column[place][1] for column in columns)} |" for place, label in enumerate(labels)
    ]
    return "\n".join(lines)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    stale = False
    for name, (page_name, rows_of) in TABLES.items():
        path = ROOT / "docs" / page_name
        before = path.read_text(encoding="utf-8")
        block = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        page = block.sub(lambda found, rows=rows_of: f"{found[1]}{drawn(rows)}\n{found[2]}", before)
        stale |= page != before
        if not arguments.check:
            path.write_text(page, encoding="utf-8")
    return int(stale and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
