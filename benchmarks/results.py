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
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUNS, PAGE = ROOT / "benchmarks" / "evals", ROOT / "docs" / "results.md"


@dataclass(frozen=True, slots=True)
class Table:
    """One table: some figures of a suite, a row a value of `rows` (or of several), a column a model × `columns`.

    Of several figures, `columns` is empty and a column is a model × figure, headed by what is before the comma.
    """

    suite: str
    figure: str | tuple[str, ...]
    rows: str | tuple[str, str]
    columns: str
    head: str
    only: Mapping[str, Any] = field(default_factory=dict)  # the value of a key, or a tuple of those it may have
    runs: str = ""  # what a run folder's name has to match

    @property
    def names(self) -> tuple[str, ...]:
        """The figures' names."""
        return (self.figure,) if isinstance(self.figure, str) else self.figure

    def column(self, figure: Mapping[str, Any]) -> str:
        """What stands at the head of a figure's column, beside the model."""
        if not self.columns:
            return str(figure["name"]).partition(",")[0]
        return str(figure["group"][self.columns]) if self.columns not in self.keys else ""

    @property
    def keys(self) -> tuple[str, ...]:
        """What tells the rows apart."""
        return (self.rows,) if isinstance(self.rows, str) else self.rows

    def row(self, group: Mapping[str, Any]) -> Any:
        """What stands at the left of a figure: a number or a text."""
        values = [group[key] for key in self.keys]
        return values[0] if len(values) == 1 else ": ".join(map(str, values))


ALONE = {"arm": "fitted on the other domains"}
ATTACK = ("attack", "variant")
CALLING = "5b-actions$"  # runs of models that wrote the calls they were asked for; the smallest wrote none
PROBE = {"arm": "probe"}
SUMMED = "what is summed up"
HARM_INSIDE, HARM_REFUSED = "harm inside a harmless thought", "harm in the thought, refusal"
READS = ("request alone", "thought, mean", "thought, maximum", "whole, mean", "whole, maximum", "whole, policy")
REFUSALS = ("refusals recognised", "answers taken for refusals")
ENGLISH, OTHERS = "en", "all but English"
"""Rows of a table of languages: English stands first, the others follow by name, and what sums them up is last."""
_JUDGED = (
    "auroc",
    "halted at 1 %",
    "halted at 1 % of English",
    "false alarms at 1 % of English",
    "halted",
    "false alarms",
)
KINDS = {
    "requests": _JUDGED[:4],
    "answers": ("halted", "false alarms"),
    "answers from depth 25": _JUDGED,
    "own answers": ("auroc", "false alarms"),
    "mixed requests": ("auroc", "halted at 1 %"),
    "mixed answers": ("halted", "false alarms"),
    "mixed answers from depth 25": ("auroc", "halted at 1 %", "halted", "false alarms"),
}
"""Kinds of text of the suite `languages`, and what is said of each."""


def language_tables() -> dict[str, Table]:
    """A table of each kind of text and model of the suite `languages`."""
    found = {"languages-refusals": Table("languages", REFUSALS, "language", "", "language", runs="0.5b-languages$")}
    for model in ("1.5b", "0.5b"):
        for kind, names in KINDS.items():
            own = tuple(f"{name}, {kind}" for name in names)
            only = PROBE | ({} if kind == "own answers" else {"set": "polyrefuse"})
            name = f"languages-{kind.replace(' ', '-')}-{model}"
            found[name] = Table("languages", own, "language", "", "language", only, f"{model}-languages$")
        only = {**PROBE, "set": "multijail"}
        name = f"languages-multijail-{model}"
        found[name] = Table("languages", ("halted, requests",), "language", "", "language", only, f"{model}-languages$")
    for kind in ("requests", "answers"):
        own = f"auroc, {kind}"
        found[f"languages-refit-{kind}"] = Table("language-refit", own, "language", "fitted on", "language")
    return found


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
    **language_tables(),
    "multi-turn": Table("multi-turn", "halted", "case", "arm", "case"),
    "actions": Table("actions", "auroc within domains", "arm", "arm", "scores"),
    "actions-domains": Table("actions", "auroc by domain", "domain", "arm", "domain", ALONE),
    "actions-ran": Table("actions", "ran", "how", "acts", "calls that are asked for run", runs=CALLING),
    "actions-warned": Table("actions", "answers to a warning", "answer", "acts", "answer to a warning", runs=CALLING),
    "causal": Table("causal", "change beyond the control's", "edit", "depth", "edit", {"answers": "harmful"}),
    "drift-harmful": Table("drift", "halting change", "weights", "of", "weights", {"of": "all harmful"}),
    "drift-harmless": Table("drift", "halting change", "weights", "of", "weights", {"of": "all harmless"}),
    "drift-sets": Table("drift", "halted", "weights", "of", "weights", runs="0.5b-drift$"),
    "drift-auroc": Table("drift", "auroc difference", "weights", "of", "weights", runs="0.5b-drift$"),
    "drift-scores": Table("drift", "score difference", "weights", "of", "weights"),
    "thoughts-throughout": Table("thoughts", "auroc", "read", "against", SUMMED, {"case": "harm throughout"}),
    "thoughts-inside": Table("thoughts", "auroc", "read", "against", SUMMED, {"case": HARM_INSIDE}),
    "thoughts-refusal": Table("thoughts", "auroc", "read", "against", SUMMED, {"case": HARM_REFUSED}),
    "thoughts-gain": Table("thoughts", "advantage of the maximum", ("case", "against"), "over", "case: against"),
    "thoughts-halted": Table("thoughts", "halted", "case", "read", "case", {"read": READS}),
    "thoughts-early": Table("thoughts", "halted before the answer", "case", "read", "case", {"read": READS}),
    "thoughts-guard": Table("thoughts", "halted by the guard", "case", "where", "case"),
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
            wanted = {*table.keys, *filter(None, [table.columns]), *table.only}
            if figure["name"] not in table.names or not wanted - set(table.only) <= set(group):
                continue
            if any(group.get(key) not in _several(value) for key, value in table.only.items()):
                continue
            if set(group) - wanted - {"set"}:
                continue
            yield short(manifest["model"]["name"]) + (", quick" if manifest["options"]["quick"] else ""), figure


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def drawn(table: Table) -> str:
    """The table as Markdown; a line that says so where no run has the figures."""
    cells: dict[tuple[Any, ...], dict[tuple[str, str], str]] = {}
    heads: dict[tuple[str, str], None] = {}
    for model, figure in figures(table):
        group = figure["group"]
        more = str(group["set"]) if "set" in group and "set" not in (*table.keys, *table.only) else ""
        column = (model, table.column(figure))
        row = (table.row(group), more)
        heads[column] = None
        cells.setdefault(row, {})[column] = cell(figure)
    if not cells:
        return "*No run of this in `benchmarks/evals`.*"
    if not isinstance(table.figure, str):
        order = [name.partition(",")[0] for name in table.figure]
        heads = dict.fromkeys(sorted(heads, key=lambda head: (head[0], order.index(head[1]))))
    several = len({model for model, _ in heads}) > 1
    names = [" ".join(part for part in (model if several else "", what) if part) or "value" for model, what in heads]
    lines = [f"| {table.head} | {' | '.join(names)} |", "|---|" + "---|" * len(heads)]
    if all(isinstance(row, int | float) for row, _ in cells):
        cells = dict(sorted(cells.items()))
    if any(row == ENGLISH for row, _ in cells):
        cells = dict(sorted(cells.items(), key=lambda each: (each[0][0] != ENGLISH, each[0][0] == OTHERS, each[0])))
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
    text = f"{whole_percent(value)} %" if share else f"{value:.3g}"
    if interval and None not in interval:
        low, high = (whole_percent(end) if share else f"{end:.3g}" for end in interval)
        text += f" ({low}–{high})" if not low.startswith("-") else f" ({low} to {high})"
    return f"{text}, {figure['answers']}" if figure["answers"] else text


def whole_percent(share: float) -> str:
    """A share in whole per cent, a half away from zero: 0.075 is 8, also as a sum of floats that lies just below it."""
    rounded = Decimal(repr(round(100 * share, 6))).quantize(Decimal(1), ROUND_HALF_UP)
    return str(rounded + 0)  # without the sign of a zero


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
