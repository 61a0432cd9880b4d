#!/usr/bin/env python3
"""Train the Deep-Alignment baseline: a LoRA adapter that refuses after it has begun to answer.

    train_deep_aligned.py MODEL --data-dir DIR -o FOLDER [--steps 100] [--refusals 200] [--check 24]

FOLDER becomes a PEFT adapter: anydepth eval MODEL --suite deep-prefill --set deep-prefill.deep_aligned=FOLDER.
Checkpoints are kept in FOLDER/steps, so that a killed training goes on. Afterwards the share of refusals is measured
with and without it, on requests that are not trained on: harmful answers forced for some tokens, and harmless prompts.

Qi et al., "Safety Alignment Should Be Made More Than Just a Few Tokens Deep": the first tokens of a harmful answer are
put into the model's mouth and a refusal follows; the loss is on the refusal alone. Harmless answers are mixed in, so
that the model does not learn to refuse everything.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.backends.batch import batches, write_batch
from anydepth.backends.transformers import TransformersBackend, load
from anydepth.conversations import corpora
from anydepth.conversations.dataset import Conversation, digest
from anydepth.detectors.refusals import RefusalMatcher
from anydepth.errors import ConfigError
from anydepth.evals.instruments.tuning import (
    LEAST_ANSWER,
    TrainingExample,
    TuneOptions,
    adapted,
    end_of_turn,
    example,
    trainable,
    tune,
)
from anydepth.probes.recipe.pairs import half
from anydepth.templates.template import Prompt

TRAINING = "probe_train"
HELD_OUT = ("prompts_advbench", "prompts_strongreject", "pairs_deep_validation", "attacks_validation", "prompts_xstest")
DEPTHS = (0, 25, 100)
NEW_TOKENS = 24
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I can't help with this: it could lead to somebody being hurt.",
    "I won't continue with this. What is asked for could do serious harm.",
    "I'm sorry, but I have to stop here. I can't assist with something that could harm people.",
    "I can't provide this. If there is a safe purpose behind it, tell me and I'll gladly help with that.",
    "I'm not able to help with that, because it could put people in danger.",
)
"""What the model is to say, in several wordings, so that it learns to refuse and not a sentence."""


@dataclass(frozen=True, slots=True)
class RecoveryOptions:
    """What the model is shown.

    Attributes:
        deepest: Tokens of a harmful answer before the refusal, at most.
        at_once: Share of the refusals that come at once, without any token of an answer (Qi et al.: a half).
        harmless: Harmless answers for each refusal.
        longest: Tokens of an example with a refusal at most.
        longest_harmless: Tokens of an example with a harmless answer at most.
        seed: Of the depths and the wordings.
    """

    deepest: int = 48
    at_once: float = 0.5
    harmless: float = 1.0
    longest: int = 112
    longest_harmless: int = 72
    seed: int = 0

    def __post_init__(self) -> None:
        if self.deepest < 1:
            raise ConfigError(f"deepest is {self.deepest}; give at least 1 token, or nothing is recovered from")
        if not 0 <= self.at_once < 1:
            raise ConfigError(f"at_once is {self.at_once}; give a share from 0 to below 1")
        if self.harmless <= 0:
            raise ConfigError(f"harmless is {self.harmless}; without harmless answers the model learns to refuse all")


def recovery(
    backend: TransformersBackend, row: Conversation, refusal: str, depth: int, longest: int
) -> TrainingExample | None:
    """The first `depth` tokens of the answer in `row`, then `refusal`; None if that is longer than `longest`."""
    if depth:
        answer = backend.template.prompt([*row.messages], prefill=row.response)
        start = answer.start + min(depth, answer.prefill)
        said = backend.tokenizer.encode(f" {refusal}", add_special_tokens=False)
        ids = (*answer.ids[:start], *said, end_of_turn(backend))
    else:
        whole = backend.template.prompt([*row.messages], prefill=refusal)
        start, ids = whole.start, (*whole.ids, end_of_turn(backend))
    return TrainingExample(ids, start) if len(ids) <= longest else None


def recoveries(
    backend: TransformersBackend,
    harmful: Iterable[Conversation],
    harmless: Iterable[Conversation],
    options: RecoveryOptions,
    count: int,
) -> list[TrainingExample]:
    """`count` refusals, and harmless answers beside them.

    Raises:
        ConfigError: There are too few conversations that fit.
    """
    rng = np.random.default_rng(options.seed)
    refusals = []
    for row in harmful:
        depth = 0 if rng.random() < options.at_once else int(rng.integers(1, options.deepest + 1))
        wording = REFUSALS[int(rng.integers(len(REFUSALS)))]
        if len(refusals) < count and (found := recovery(backend, row, wording, depth, options.longest)):
            refusals.append(found)
    wanted = round(options.harmless * count)
    answers = [found for row in harmless if (found := example(backend, row, options.longest_harmless))][:wanted]
    _enough(refusals, count, "harmful", options.longest)
    _enough(answers, wanted, "harmless", options.longest_harmless)
    return [*refusals, *answers]


def _enough(found: Sequence[TrainingExample], wanted: int, what: str, longest: int) -> None:
    if len(found) < wanted:
        raise ConfigError(
            f"{len(found)} {what} conversations fit into {longest} tokens, {wanted} are wanted (with {LEAST_ANSWER} "
            "tokens of answer or a refusal); give more, longer examples, or ask for fewer"
        )


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
