#!/usr/bin/env python3
"""What each part of the recipe and each option of the fit brings, one changed at a time.

    probe_ablation.py PROBE --data-dir DIR [-o FILE.json]     # PROBE: what `anydepth fit` wrote, with its work folder

Every row is fitted on the states that `fit` collected and measured on all held-out answers: response-level AUROC with a
bootstrap interval over prompts, with the policy that the probe was calibrated with. The same table as Markdown beside
the JSON.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from anydepth.backends.protocol import CONTENT, Read
from anydepth.detectors import LinearProbe
from anydepth.policy import Policy, policy_from
from anydepth.probes.fitting.fit import FitOptions, fit
from anydepth.probes.fitting.measure import separation_with_interval
from anydepth.probes.recipe.own_answers import load_answers
from anydepth.probes.recipe.pairs import Pair
from anydepth.probes.recipe.recipe import TRAIN, Gathered, gather, read_recipe
from anydepth.probes.states.plan import reading_of
from anydepth.probes.states.store import Checks, StateStore, answer_key

CLEAN = ("clean harmful", "clean harmless")
"""Parts that every variant keeps."""

LAST = 25
"""Tokens of the mean that is compared with header tokens."""


def members(gathered: Sequence[Gathered], work: Path) -> dict[str, str]:
    """Answer key -> name of its part."""
    found: dict[str, str] = {}
    for each in gathered:
        rows = each.conversations
        if each.part.written:
            asked = {f"{row.id}+own" for row in rows}
            written = load_answers(work / "written" / f"{each.part.name}.jsonl")
            rows = [row for row in written if row.id.rpartition("-")[0] in asked]
        for row in rows:
            found.setdefault(answer_key(row.messages, row.response), each.part.name)
    return found


class Bench:
    """The states of one probe's folder, and what to compare on them."""

    def __init__(self, folder: Path, data: Path, work: Path) -> None:
        recipe = read_recipe()
        gathered = gather(recipe, data=data, permissive_only=True)
        self.probe = LinearProbe.load(folder)
        self.store = StateStore(work / "states")
        self.part_of = members(gathered, work)
        reading = {each.part.name: reading_of(each.part.schedule, each.part.longest) for each in gathered}
        self.readings = {key: reading[name] for key, name in self.part_of.items()}
        self.split_of = {part.name: part.split for part in recipe.parts}
        self.added = tuple(part.name for part in recipe.parts if part.split == TRAIN and part.name not in CLEAN)
        self.pairs = [Pair.of(record) for record in recipe.measure["pairs"]]
        best = json.loads((folder / "fit.json").read_text(encoding="utf-8"))["trials"][0]
        fields = FitOptions.__dataclass_fields__
        self.options = FitOptions(**{name: value for name, value in best.items() if name in fields})
        self.policy: Policy = policy_from(self.probe.card.policy or {"name": "threshold"})
        self.rows: list[dict] = []

    def states(self, reads: Sequence[Read]) -> tuple[Checks, np.ndarray]:
        """The checks of the recipe's answers, and the part of each."""
        checks = self.store.read([(read.site, read.token) for read in reads], views=("own",), readings=self.readings)
        parts = np.array([self.part_of.get(key, "") for key in checks["answer"]])
        checks = Checks(
            {**checks.columns, "split": np.array([self.split_of.get(part, "") for part in parts])}, checks.states
        )
        return checks.where(parts != ""), parts[parts != ""]

    def row(
        self,
        name: str,
        *,
        reads: Sequence[Read] | None = None,
        options: FitOptions | None = None,
        without: Sequence[str] = (),
        share: float = 1.0,
        judged_from: int = 0,
    ) -> None:
        """Fit one variant and note its figures."""
        checks, parts = self.states(reads or self.probe.reads)
        train = (checks["split"] == TRAIN) & ~np.isin(parts, list(without))
        if share < 1:
            keys = np.unique(checks["answer"][train])
            train &= np.isin(
                checks["answer"], keys[np.random.default_rng(0).permutation(len(keys))[: int(share * len(keys))]]
            )
        fitted = fit(checks.where(train), options or self.options)
        held_out = checks.where((checks["split"] != TRAIN) & (checks["depth"] >= judged_from))
        logits = fitted.logits(held_out.states)
        found: dict[str, Mapping] = {}
        for pair in self.pairs:
            value, interval = separation_with_interval(held_out, logits, pair, self.policy)
            found[pair.name] = {"auroc": round(value, 4), "interval": [round(edge, 4) for edge in interval.record()]}
        answers = len(np.unique(checks["answer"][train]))
        self.rows.append({"variant": name, "answers": answers, "checks": fitted.checks, "separation": found})
        print(name, {pair: row["auroc"] for pair, row in found.items()}, flush=True)


def compare(bench: Bench) -> None:
    """All rows of the table."""
    reads, options = bench.probe.reads, bench.options
    bench.row("as shipped")
    bench.row("clean answers only", without=bench.added)
    for name in bench.added:
        bench.row(f"without {name}", without=(name,))
    moved = [name for name in bench.added if "crossed" in name or "spliced" in name]
    bench.row("without crossed and spliced parts", without=moved)
    bench.row("without either framed set", without=("framed harmful", "framed harmless"))
    for share in (0.25, 0.5):
        bench.row(f"{share:.1%} of the training answers", share=share)
    site, header = reads[-1].site, bench.store.manifest.read_index
    last = len(bench.store.manifest.header_ids) - 1
    for name, tokens in {
        "read token of the header": (header,),
        "last token of the header": (last,),
        "last content token, no header": (CONTENT,),
        f"mean of the last {LAST} answer tokens, no header": (-LAST,),
        f"last token of the header and mean of the last {LAST}": (last, -LAST),
        f"read token of the header and mean of the last {LAST}": (header, -LAST),
        "last token of the header and content token": (last, CONTENT),
    }.items():
        bench.row(name, reads=[Read(site, token) for token in tokens])
    for other in bench.store.manifest.sites:
        bench.row(f"block {other.block}", reads=[replace(read, site=other) for read in reads])
    for judged_from in (1, 25, 50):
        bench.row(f"checks before depth {judged_from} left out of the judgement", judged_from=judged_from)
    for strength in (0.0003, 0.001, 0.003, 0.01, 0.1):
        bench.row(f"strength {strength}", options=replace(options, strength=strength))
    for balance in ("label", "source"):
        bench.row(f"balanced by {balance}", options=replace(options, balance=balance))
    bench.row("10% least credible labels dropped", options=replace(options, clean=0.1))
    bench.row("mass-mean direction", options=replace(options, method="mass-mean"))


def markdown(rows: Sequence[Mapping], pairs: Sequence[str]) -> str:
    """The table."""
    lines = [f"| variant | answers | {' | '.join(pairs)} |", "|---|---|" + "---|" * len(pairs)]
    for row in rows:
        cells = [
            f"{row['separation'][pair]['auroc']:.3f} ({row['separation'][pair]['interval'][0]:.3f}–"
            f"{row['separation'][pair]['interval'][1]:.3f})"
            for pair in pairs
        ]
        lines.append(f"| {row['variant']} | {row['answers']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the arguments, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("probe", type=Path)
    parser.add_argument("--work", type=Path, help="work folder of `fit`; PROBE/work by default")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, default=Path("probe-ablation.json"))
    args = parser.parse_args()
    bench = Bench(args.probe, args.data_dir, args.work or args.probe / "work")
    compare(bench)
    card = bench.probe.card
    record = {
        "model": card.model.name,
        "command": f"benchmarks/probe_ablation.py PROBE --data-dir DIR -o {args.out.name}",
        "policy": card.policy,
        "base": {
            "reads": [str(read) for read in bench.probe.reads],
            **{k: getattr(bench.options, k) for k in FitOptions.__dataclass_fields__},
        },
        "versions": dict(card.versions),
        "rows": bench.rows,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    args.out.with_suffix(".md").write_text(markdown(bench.rows, [pair.name for pair in bench.pairs]), encoding="utf-8")


if __name__ == "__main__":
    main()
