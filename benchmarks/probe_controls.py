#!/usr/bin/env python3
"""What the Safety Tokens add: the header against a newline, random tokens, the user's header, and no suffix at all.

    probe_controls.py MODEL PROBE --data-dir DIR [-o FILE.json]      # PROBE: what `anydepth fit` wrote, for its options

Reads one subset of the recipe's clean training answers and held-out answers once with each suffix, and once with the
header in a shadow context (the answer under a neutral user turn); fits the same options on each at the probe's block,
and reports response-level AUROC with bootstrap intervals, threshold policy. Each suffix is read at its last token, the
header at its read token too. `max` rows take the larger of two probes' scores at each check. It goes on where it was
stopped (`PROBE/work/controls`).
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from anydepth.backends.protocol import CONTENT, Backend, Site
from anydepth.backends.transformers import load
from anydepth.conversations.splits import balance
from anydepth.detectors import LinearProbe
from anydepth.policy import Threshold
from anydepth.probes.fitting.fit import FitOptions, fit
from anydepth.probes.fitting.measure import separation_with_interval
from anydepth.probes.recipe.pairs import Pair
from anydepth.probes.recipe.recipe import TRAIN, Gathered, gather, read_recipe
from anydepth.probes.states.collect import collect
from anydepth.probes.states.manifest import dtype_of, manifest_for
from anydepth.probes.states.plan import CollectPlan
from anydepth.probes.states.store import Checks, StateStore

TRAIN_PARTS = ("clean harmful", "clean harmless")
VIEWS = (("header", "own"), ("newline", "own"), ("random", "own"), ("user", "own"), ("header", "shadow"))


def subset(gathered: Sequence[Gathered], train: int, held_out: int) -> list[Gathered]:
    """At most `train` answers of each clean training part and `held_out` of each held-out set."""
    found = []
    for each in gathered:
        size = train if each.part.name in TRAIN_PARTS else held_out
        if each.part.name not in TRAIN_PARTS and each.part.split == TRAIN:
            continue
        sources = len({row.source for row in each.conversations})
        rows = balance(each.conversations, per_source=max(1, size // sources)).kept
        found.append(replace(each, conversations=rows))
    return found


def read(backend: Backend, parts: Sequence[Gathered], site: Site, folder: Path, suffix: str, view: str) -> StateStore:
    """The store of one suffix."""
    plan = CollectPlan((site,), suffix=suffix, view=view)
    store = StateStore.create(folder / suffix, manifest_for(backend, plan, dtype=dtype_of(backend)))
    for each in parts:
        part = each.part
        wanted = replace(plan, split=part.split, schedule=part.schedule, longest=part.longest or 300)
        done = collect(backend, each.conversations, store, wanted)
        print(suffix, view, part.name, done.answers, "read", done.present, "there", flush=True)
    return store


def logits(store: StateStore, view: str, tokens: Sequence[int], options: FitOptions) -> tuple[Checks, np.ndarray]:
    """Held-out checks at depths from 1 on, and their logits by a probe fitted on this suffix."""
    checks = store.read([(store.manifest.sites[0], token) for token in tokens], views=(view,))
    checks = checks.where(checks["depth"] > 0)  # at depth 0 a control has no place in the prompt
    checks = checks.where(np.lexsort((checks["depth"], checks["answer"])))
    train = checks["split"] == TRAIN
    fitted = fit(checks.where(train), replace(options, first_depth=1))
    held_out = checks.where(~train)
    return held_out, fitted.logits(held_out.states)


def main() -> None:
    """Read the arguments, collect, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("probe", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--train", type=int, default=150, help="answers of each clean training part")
    parser.add_argument("--held-out", type=int, default=50, help="answers of each held-out set")
    parser.add_argument("-o", "--out", type=Path, default=Path("probe-controls.json"))
    args = parser.parse_args()
    recipe = read_recipe()
    parts = subset(gather(recipe, data=args.data_dir, permissive_only=True), args.train, args.held_out)
    probe = LinearProbe.load(args.probe)
    best = json.loads((args.probe / "fit.json").read_text(encoding="utf-8"))["trials"][0]
    options = FitOptions(**{name: value for name, value in best.items() if name in FitOptions.__dataclass_fields__})
    backend = load(args.model)
    site = probe.reads[0].site
    folder = args.probe / "work" / "controls"
    stores = {(suffix, view): read(backend, parts, site, folder, suffix, view) for suffix, view in VIEWS}
    header = stores["header", "own"]
    role = header.manifest.read_index
    rows = {
        "header, read token": logits(header, "own", [role], options),
        "header, last token": logits(header, "own", [len(header.manifest.header_ids) - 1], options),
        "last content token": logits(header, "own", [CONTENT], options),
        "header and content token, one probe": logits(header, "own", [role, CONTENT], options),
        **{
            f"{name}, last token": logits(
                stores[name, "own"], "own", [stores[name, "own"].manifest.read_index], options
            )
            for name in ("newline", "random", "user")
        },
        "header in a shadow context": logits(header, "shadow", [role], options),
    }
    first, second = rows["header, read token"], rows["last content token"]
    rows["max of header and content token"] = (first[0], np.maximum(first[1], second[1]))
    pairs = [Pair.of(record) for record in recipe.measure["pairs"]]
    found = {}
    for name, (checks, values) in rows.items():
        found[name] = {}
        for pair in pairs:
            value, interval = separation_with_interval(checks, values, pair, Threshold())
            found[name][pair.name] = {"auroc": round(value, 4), "interval": [round(e, 4) for e in interval.record()]}
        print(name, {pair: row["auroc"] for pair, row in found[name].items()}, flush=True)
    sizes = {each.part.name: len(each.conversations) for each in parts}
    record = {
        "model": probe.card.model.name,
        "command": f"benchmarks/probe_controls.py MODEL PROBE --data-dir DIR --train {args.train} "
        f"--held-out {args.held_out} -o {args.out.name}",
        "site": str(site),
        "answers": sizes,
        "rows": found,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
