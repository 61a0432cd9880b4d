"""Fill the tables of docs/results.md from the runs in benchmarks/evals.

    python benchmarks/results.py            writes docs/results.md
    python benchmarks/results.py --check    exits with 1 if it is not up to date

A block `<!-- NAME:begin -->` … `<!-- NAME:end -->` is replaced by the table of that name below. No number is typed by
hand.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUNS, PAGE = ROOT / "benchmarks" / "evals", ROOT / "docs" / "results.md"


@dataclass(frozen=True, slots=True)
class Table:
    """One table: some figures of a suite, a row a value of `rows` (or of several), a column a model × `columns`."""

    suite: str
    figure: str
    rows: str | tuple[str, str]
    columns: str
    head: str
    only: Mapping[str, Any] = field(default_factory=dict)
    runs: str = ""  # what a run folder's name has to match

    @property
    def keys(self) -> tuple[str, ...]:
        """What tells the rows apart."""
        return (self.rows,) if isinstance(self.rows, str) else self.rows

    def row(self, group: Mapping[str, Any]) -> Any:
        """What stands at the left of a figure: a number or a text."""
        values = [group[key] for key in self.keys]
        return values[0] if len(values) == 1 else ": ".join(map(str, values))


ATTACK = ("attack", "variant")
PROBE = {"arm": "probe"}

TABLES: Mapping[str, Table] = {
    "deep-prefill": Table("deep-prefill", "stopped", "depth", "arm", "prefill, tokens"),
    "deep-prefill-there": Table("deep-prefill", "flagged there", "depth", "arm", "prefill, tokens"),
    "deep-prefill-false": Table("deep-prefill", "false alarms", "depth", "arm", "prefill, tokens"),
    "attacks": Table("attacks", "attack_success", "attack", "arm", "attack"),
    "attacks-halted": Table("attacks", "halted", "attack", "arm", "attack"),
    "stored": Table("attacks", "stored_halted", "table", "label", "stored answers", {"arm": "probe"}),
    "adaptive": Table("adaptive", "halted", ATTACK, "arm", "attack", PROBE, "^(?!.*-replayed$)"),
    "replayed": Table("adaptive", "halted", ATTACK, "arm", "attack, harmful answers", PROBE, "-replayed$"),
    "replayed-false": Table("adaptive", "false_alarms", ATTACK, "arm", "attack, harmless answers", PROBE, "-replayed$"),
    "over-refusal": Table("over-refusal", "false alarms", "set", "arm", "answers"),
    "over-refusal-model": Table("over-refusal", "refused", "set", "kind", "prompts", {"arm": "base"}),
    "utility": Table("utility", "accuracy", "source", "arm", "benchmark"),
    "separability": Table("separability", "separation held out", "against", "read", "held-out harmful answers against"),
    "separability-depth": Table("separability", "separation by depth", "depth", "read", "depth"),
    "separability-controls": Table("separability", "separation by token", "token", "token", "token read"),
    "advantage": Table("separability", "advantage of the Safety Tokens", "over", "over", "over"),
    "interval": Table("interval", "overhead", "interval", "start", "check every"),
    "interval-halted": Table("interval", "halted", "interval", "start", "check every"),
    "erosion": Table("erosion", "stopped", "step", "arm", "steps", {"data": "adversarial", "set": "requests"}),
    "erosion-benign": Table("erosion", "stopped", "step", "arm", "steps", {"data": "benign", "set": "requests"}),
    "erosion-halted": Table("erosion", "halted", "step", "arm", "steps", {"data": "adversarial"}),
    "erosion-lost": Table("erosion", "halting lost", "step", "arm", "steps", {"data": "adversarial"}),
    "multi-turn": Table("multi-turn", "halted", "case", "arm", "case"),
    "causal": Table("causal", "change beyond the control's", "edit", "depth", "edit", {"answers": "harmful"}),
    "reward": Table("reward", "after training", "measure", "arm", "answers to"),
    "reward-seeds": Table("reward", "over seeds", "measure", "arm", "answers to"),
    "reward-probes": Table("reward", "held-out answers told apart", "read", "arm", "probe on"),
    "reward-own": Table(
        "reward",
        "own answers told apart",
        ("read", "weights"),
        "arm",
        "probe on: weights",
        {"sorted by": "the text judge"},
    ),
    "reward-judge": Table("reward", "independent judge", "what", "judge", "labelled answers"),
    "latency": Table("latency", "decode steps a check", "context", "arm", "tokens so far"),
    "throughput": Table("latency", "guarded throughput", "interval", "arm", "check every"),
}


def figures(table: Table) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each figure of the table with its run's model."""
    for manifest_path in sorted(RUNS.glob("*/manifest.json")):
        if not re.search(table.runs, manifest_path.parent.name):
            continue
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        suites = json.loads((manifest_path.parent / "summary.json").read_text(encoding="utf-8"))["suites"]
        for figure in suites.get(table.suite, {}).get("figures", ()):
            group = figure["group"]
            if figure["name"] != table.figure or not {*table.keys, table.columns} <= set(group):
                continue
            wanted = {*table.keys, table.columns, *table.only}
            if any(group.get(key) != value for key, value in table.only.items()) or set(group) - wanted - {"set"}:
                continue
            yield short(manifest["model"]["name"]) + (", quick" if manifest["options"]["quick"] else ""), figure


def drawn(table: Table) -> str:
    """The table as Markdown; a line that says so where no run has the figures."""
    cells: dict[tuple[Any, ...], dict[tuple[str, str], str]] = {}
    heads: dict[tuple[str, str], None] = {}
    for model, figure in figures(table):
        group = figure["group"]
        more = str(group["set"]) if "set" in group and "set" not in (*table.keys, *table.only) else ""
        column = (model, str(group[table.columns]) if table.columns not in table.keys else "")
        row = (table.row(group), more)
        heads[column] = None
        cells.setdefault(row, {})[column] = cell(figure)
    if not cells:
        return "*No run of this in `benchmarks/evals`.*"
    several = len({model for model, _ in heads}) > 1
    names = [" ".join(part for part in (model if several else "", what) if part) or "value" for model, what in heads]
    lines = [f"| {table.head} | {' | '.join(names)} |", "|---|" + "---|" * len(heads)]
    if all(isinstance(row, int | float) for row, _ in cells):
        cells = dict(sorted(cells.items()))
    for (row, more), values in cells.items():
        label = f"{row:,}" if isinstance(row, int) else str(row)
        lines.append(f"| {', '.join(filter(None, [label, more]))} | {' | '.join(values.get(h, '') for h in heads)} |")
    models = ", ".join(dict.fromkeys(model for model, _ in heads))
    judges = sorted({figure["judge"] for _, figure in figures(table) if figure["judge"]})
    said = f" Judge: {', '.join(judges)}." if judges else ""
    return "\n".join(lines) + f"\n\n{models}; value, 95 % interval, answers.{said}"


def cell(figure: Mapping[str, Any]) -> str:
    """A figure with its interval and number of answers."""
    value, interval, share = figure["value"], figure["interval"], figure["unit"] == "share"
    if value is None:
        return "–"
    text = f"{100 * value:.0f} %" if share else f"{value:.3g}"
    if interval and None not in interval:
        low, high = (f"{100 * end:.0f}" if share else f"{end:.3g}" for end in interval)
        text += f" ({low}–{high})" if not low.startswith("-") else f" ({low} to {high})"
    return f"{text}, {figure['answers']}" if figure["answers"] else text


def short(model: str) -> str:
    """The model's name without its owner and the word for instruction tuning."""
    return re.sub(r"-instruct$", "", model.rpartition("/")[2], flags=re.IGNORECASE)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    before = page = PAGE.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        block = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        page = block.sub(lambda found, t=table: f"{found[1]}{drawn(t)}\n{found[2]}", page)
    if arguments.check:
        return int(page != before)
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
