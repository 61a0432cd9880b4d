#!/usr/bin/env python3
"""Train the Deep-Alignment baseline: a LoRA adapter that refuses after it has begun to answer.

    train_deep_aligned.py MODEL --data-dir DIR -o FOLDER [--steps 100] [--refusals 200] [--check 24]

FOLDER becomes a PEFT adapter: anydepth eval MODEL --suite deep-prefill --set deep-prefill.deep_aligned=FOLDER.
Checkpoints are kept in FOLDER/steps, so that a killed training goes on. Afterwards the share of refusals is measured
with and without it, on requests that are not trained on: harmful answers forced for some tokens, and harmless prompts.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from anydepth.backends.batch import batches, write_batch
from anydepth.backends.transformers import TransformersBackend, load
from anydepth.conversations import corpora
from anydepth.conversations.dataset import Conversation, digest
from anydepth.detectors.refusals import RefusalMatcher
from anydepth.evals.instruments.deep_aligned import RecoveryOptions, recoveries
from anydepth.evals.instruments.tuning import TuneOptions, adapted, trainable, tune
from anydepth.probes.recipe.pairs import half
from anydepth.templates.template import Prompt

TRAINING = "probe_train"
HELD_OUT = ("prompts_advbench", "prompts_strongreject", "pairs_deep_validation", "attacks_validation", "prompts_xstest")
DEPTHS = (0, 25, 100)
NEW_TOKENS = 24


def main() -> None:
    """Train, put the adapter in its place, check it, write what it was made of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the adapter")
    parser.add_argument("--steps", type=int, default=100, help="optimiser steps of 4 examples")
    parser.add_argument("--refusals", type=int, default=200, help="examples with a refusal, and as many harmless ones")
    parser.add_argument("--sources", default="dolly*,alpaca*", help="patterns of the sources of harmless answers")
    parser.add_argument("--check", type=int, default=24, help="answers of each kind to check it on; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    backend = load(args.model)
    tables = {name: drawn(args.data_dir, name, args.seed) for name in (TRAINING, *HELD_OUT, "pairs_benign_validation")}
    held_out = [row for name in HELD_OUT for row in tables[name]]
    harmful = trainable(tables[TRAINING], held_out, label="harmful")
    harmless = trainable(tables[TRAINING], held_out, label="benign", sources=args.sources.split(","))
    recovery = RecoveryOptions(seed=args.seed)
    examples = recoveries(backend, harmful, harmless, recovery, args.refusals)
    options = TuneOptions(steps=(args.steps,), longest=recovery.longest, seed=args.seed)
    begun = time.process_time()
    [made] = tune(backend, examples, options, args.out / "steps", told)
    seconds = time.process_time() - begun
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(made.folder / name, args.out / name)
    record: dict[str, Any] = {
        "model": Path(backend.identity.name).name,
        "fingerprint": backend.identity.fingerprint,
        "command": f"benchmarks/train_deep_aligned.py MODEL --data-dir DIR --steps {args.steps} "
        f"--refusals {args.refusals} --check {args.check} --seed {args.seed} -o FOLDER",
        "examples": len(examples),
        "tokens": sum(len(each.ids) for each in examples),
        "steps": args.steps,
        "cpu_seconds": round(seconds, 1),
        "loss": made.loss,
    }
    if args.check:
        with adapted(backend, args.out) as (tuned, _):
            after = checked(tuned, tables, args.check)
        record["refused"] = {"before": checked(backend, tables, args.check), "after": after}
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


def drawn(data: Path, name: str, seed: int) -> list[Conversation]:
    """The rows of a table in an order drawn with the seed."""
    return sorted(corpora.load(name, data=data), key=lambda row: digest(f"{seed}/{row.id}"))


def checked(backend: TransformersBackend, tables: dict[str, list[Conversation]], count: int) -> dict[str, Any]:
    """Refused answers of those that were asked for, by the refusal matcher."""
    found: dict[str, Any] = {}
    rows = tables["pairs_deep_validation"]
    rows = [row for row, kept in zip(rows, half([row.prompt_key for row in rows], 1), strict=True) if kept]
    asked = {row.prompt_key: row for row in reversed(rows)}
    for depth in DEPTHS:
        prompts = [backend.template.prompt([*row.messages], prefill=row.response) for row in asked.values()]
        cut = [Prompt(each.ids[: each.start + depth], depth) for each in prompts if each.prefill >= depth]
        found[f"harmful, {depth} tokens forced"] = refused(backend, cut[:count])
    harmless = {row.prompt_key: row for row in tables["pairs_benign_validation"]}
    found["harmless"] = refused(
        backend, [backend.template.prompt([*row.messages]) for row in [*harmless.values()][:count]]
    )
    return found


def refused(backend: TransformersBackend, prompts: list[Prompt]) -> list[int]:
    """How many are refused, of how many."""
    matcher, hits = RefusalMatcher.default(), 0
    for batch in batches(prompts, lambda prompt: prompt, NEW_TOKENS, str):
        written = write_batch(backend, batch, max_new_tokens=NEW_TOKENS, seed=0, sampling={"do_sample": False})
        hits += sum(matcher.is_refusal(backend.decode_text(each.token_ids)) for each in written)
    return [hits, len(prompts)]


def told(what: str, done: int, total: int) -> None:
    """Say how far it is."""
    if done % 10 == 0 or done == total:
        print(what, done, "of", total, flush=True)


if __name__ == "__main__":
    main()
