#!/usr/bin/env python3
"""Whether a probe holds when its model is loaded in another number format.

    probe_drift.py MODEL PROBE --data-dir DIR [--answers 20] [-o FILE.json]

Scans the same held-out answers with the model in float32, bfloat16 and 8-bit weights (optimum-quanto), and compares the
scores and verdicts with those of bfloat16, check by check and answer by answer.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers import QuantoConfig

from anydepth import Guard
from anydepth.backends.transformers import load
from anydepth.conversations.splits import balance
from anydepth.detectors import LinearProbe
from anydepth.probes.recipe.recipe import gather, read_recipe

FORMATS: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16"},
    "float32": {"dtype": "float32"},
    "8-bit": {"dtype": "bfloat16", "quantization_config": QuantoConfig(weights="int8")},
}
SETS = ("long harmful", "benign", "XSTest safe", "jailbreaks")


def main() -> None:
    """Scan in every format, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("probe", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--answers", type=int, default=20, help="answers of each held-out set")
    parser.add_argument("--words", type=int, default=150, help="words of an answer to scan at most")
    parser.add_argument("-o", "--out", type=Path, default=Path("probe-drift.json"))
    args = parser.parse_args()
    probe = LinearProbe.load(args.probe)
    rows = []
    for each in gather(read_recipe(), data=args.data_dir):
        if each.part.name in SETS:
            sources = len({row.source for row in each.conversations})
            rows += [
                (each.part.name, row)
                for row in balance(each.conversations, per_source=-(-args.answers // sources)).kept
            ]
    scores, halted = {}, {}
    for name, options in FORMATS.items():
        guard = Guard.from_backend(load(args.model, **options), probe)
        found = []
        for _, row in rows:
            response = " ".join(row.response.split(" ")[: args.words])
            found.append(guard.scan([*map(dict, row.messages)], response))
        scores[name] = np.concatenate([[check.score for check in result.checks] for result in found])
        halted[name] = np.array([result.verdict.halt for result in found])
        print(name, "scanned", len(found), flush=True)
    record: dict[str, Any] = {
        "model": probe.card.model.name,
        "command": f"benchmarks/probe_drift.py MODEL PROBE --data-dir DIR --answers {args.answers} -o {args.out.name}",
        "answers": len(rows),
        "checks": len(scores["bfloat16"]),
        "formats": {},
    }
    for name in FORMATS:
        difference = np.abs(scores[name] - scores["bfloat16"])
        record["formats"][name] = {
            "mean_score_difference": float(difference.mean()),
            "largest_score_difference": float(difference.max()),
            "verdicts_changed": int((halted[name] != halted["bfloat16"]).sum()),
            "halted": {
                kind: [int(halted[name][[row[0] == kind for row in rows]].sum()), sum(row[0] == kind for row in rows)]
                for kind in SETS
            },
        }
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record["formats"], indent=1))


if __name__ == "__main__":
    main()
