#!/usr/bin/env python3
"""Can trained Safety Tokens match the innate ones? The header, trained tokens and random ones, at one block.

    trained_tokens.py MODEL --data-dir DIR --work WORK [-o FILE.json]

The recipe is a part of the shipped one: no answers that the model would write, `--share` of the limit of each training
part, `--held-out` of that of each held-out part, and `--longest` tokens of an answer. Every arm is read at one block
and at one token, and its probe is fitted, chosen, calibrated and measured as `anydepth fit` does it:

    header      the last token of the template's header
    begins K    the header's last K tokens up to the read token, behind the text: what a training begins with
    trained K   K trained tokens
    random K    K fixed random embeddings, each as long as a header token's

An arm that is in FILE already is left out, and one that was cut short goes on where it was stopped.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anydepth.backends.protocol import FinishedAnswer, Site
from anydepth.backends.transformers import TransformersBackend, load
from anydepth.backends.transformers.cached_texts import CachedTexts
from anydepth.files import packaged_toml
from anydepth.probes.fitting.train import Filled, collect_parts, fill, train, write_parts
from anydepth.probes.recipe.recipe import Gathered, Recipe, gather, recipe_from
from anydepth.probes.states.manifest import manifest_for
from anydepth.probes.states.plan import CollectPlan
from anydepth.probes.states.store import StateStore
from anydepth.probes.tokens.fill_trained import fill_trained
from anydepth.probes.tokens.token_options import TokenOptions
from anydepth.probes.tokens.token_training import header_embeddings

CAPS = {"benign": 12, "jailbreaks": 30, "XSTest safe": 24}
"""Answers a source and label of the held-out parts to which the recipe sets no limit, or a large one."""


class Sharing(TransformersBackend):
    """Runs each text once for all arms: what differs between them stands behind it."""

    room: int
    texts: dict[tuple[FinishedAnswer, ...], CachedTexts]

    def cached_texts(self, answers: Sequence[FinishedAnswer], site: Site) -> CachedTexts:
        """The same texts again, as long as there is room to keep them."""
        key = tuple(answers)
        if key in self.texts:
            return self.texts[key]
        found = super().cached_texts(answers, site)
        if found.size <= self.room:
            self.room -= found.size
            self.texts[key] = found
        return found

    def read_batch(
        self,
        answers: Sequence[FinishedAnswer],
        sites: Sequence[Site],
        *,
        tokens: Sequence[int],
        suffix: Sequence[int] | None = None,
        embeddings: np.ndarray | None = None,
    ) -> Sequence[Mapping[Site, np.ndarray]]:
        """As `EmbeddingReader.read_batch`."""
        if embeddings is None or list(tokens) != [len(embeddings) - 1] or len(sites) > 1:
            return super().read_batch(answers, sites, tokens=tokens, suffix=suffix, embeddings=embeddings)
        states = self.cached_texts(answers, sites[0]).states(torch.tensor(embeddings), gradient=False).cpu().numpy()
        ends = np.cumsum([len(each.depths) for each in answers])[:-1]
        return [{sites[0]: part[:, None]} for part in np.split(states, ends)]


def small_recipe(share: float, held_out: float, longest: int, layer: float) -> Recipe:
    """A part of the shipped recipe, as the arms read it."""
    record = packaged_toml("recipe.toml")
    kept = [part for part in record["part"] if not part.get("written")]
    names, parts = {part["name"] for part in kept}, []
    for part in kept:
        made = {**part, "longest": min(part.get("longest", longest), longest)}
        if "depths" in part:
            made["depths"] = [depth for depth in part["depths"] if depth <= longest]
        if "under" in part:
            made["under"] = [name for name in part["under"] if name in names]
        if part["name"] in CAPS:
            made["limit"] = max(2, round(CAPS[part["name"]] * held_out * 2))
        elif "limit" in part and part.get("split", "train") == "train":
            made["limit"] = max(4, round(part["limit"] * share))
        elif "limit" in part:
            made["limit"] = max(4, round(part["limit"] * held_out))
        parts.append(made)
    measured = {**record["measure"], "leave_out": False}
    fitted = {**record["fit"], "layers": [layer], "tokens": ["last"]}
    return recipe_from({**record, "part": parts, "fit": fitted, "measure": measured}, "trained_tokens")


def told(what: str, done: int, total: int, _tokens: int = 0) -> None:
    """Say on one line what is done."""
    if done == total or done % 64 < 8:
        print(f"  {what}: {done} of {total}", flush=True)


def random_tokens(backend: TransformersBackend, count: int) -> np.ndarray:
    """Embeddings with the root mean square of the header's, of no token, float32 `[count, hidden_size]`."""
    scale = float(np.sqrt((header_embeddings(backend, 1) ** 2).mean()))
    found = np.random.default_rng(count).normal(0, scale, (count, backend.identity.hidden_size))
    return found.astype(np.float32)


def behind(
    backend: TransformersBackend, gathered: Sequence[Gathered], recipe: Recipe, work: Path, embeddings: np.ndarray
) -> tuple[Filled, Recipe]:
    """The states behind given embeddings, and the recipe that fits them."""
    site, last = Site.parse(recipe.fit["layers"][0]), len(embeddings) - 1
    plan = CollectPlan((site,), tokens=(last,), embeddings=embeddings)
    store = StateStore.create(work, manifest_for(backend, plan))
    written = write_parts(backend, gathered, recipe, work, progress=told)
    filled = collect_parts(backend, written, store, plan, progress=told)
    return filled, replace(recipe, fit={**recipe.fit, "tokens": [last]})


def arm(
    name: str, backend: TransformersBackend, gathered: Sequence[Gathered], recipe: Recipe, work: Path, epochs: int
) -> dict[str, Any]:
    """One row of the table."""
    begun, kind, count = time.monotonic(), name.split()[0], int(name.split()[-1]) if " " in name else 0
    more: dict[str, Any] = {}
    if kind == "header":
        filled, wanted = fill(backend, gathered, recipe, work, progress=told), recipe
    elif kind == "trained":
        options = TokenOptions(count=count, epochs=epochs, memory=0)  # `Sharing` keeps the texts
        own = fill_trained(backend, gathered, recipe, work, options, progress=told)
        filled, wanted, more = own.filled, own.recipe, own.record()
    else:
        rows = random_tokens(backend, count) if kind == "random" else header_embeddings(backend, count)
        filled, wanted = behind(backend, gathered, recipe, work / name.replace(" ", "-"), rows)
    trained = train(backend, filled, wanted, progress=told)
    pairs = {
        pair: {what: figures[what] for what in ("auroc", "halted")}
        for pair, figures in trained.figures["pairs"].items()
    }
    return {"arm": name, **more, "pairs": pairs, "seconds": round(time.monotonic() - begun, 1)}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table: AUROC and the share halted, with intervals, of each pair."""
    pairs = list(rows[0]["pairs"])
    lines = [f"| Safety Tokens | {' | '.join(pairs)} |", "|---|" + "---|" * len(pairs)]
    for row in rows:
        cells = []
        for pair in pairs:
            auroc, halted = (row["pairs"][pair][what] for what in ("auroc", "halted"))
            area = f"{auroc['value']:.3f} ({auroc['interval'][0]:.3f}–{auroc['interval'][1]:.3f})"
            share = f"{halted['rate']:.0%} ({halted['interval'][0]:.0%}–{halted['interval'][1]:.0%})"
            cells.append(f"{area}; {share}")
        lines.append(f"| {row['arm']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the arguments, measure the arms that are missing, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.25, help="of a training part's limit (0.25)")
    parser.add_argument("--held-out", type=float, default=0.5, help="of a held-out part's limit (0.5)")
    parser.add_argument("--memory", type=float, default=4.0, help="GiB of caches that are kept (4)")
    parser.add_argument("--longest", type=int, default=100, help="tokens of an answer (100)")
    parser.add_argument("--layer", type=float, default=0.5, help="block, as a share of the depth (0.5)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4], help="numbers of trained tokens (1 2 4)")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("-o", "--out", type=Path, default=Path("trained-tokens.json"))
    args = parser.parse_args()
    loaded = load(args.model, dtype="float32")
    backend = Sharing(loaded.model, loaded.tokenizer)
    backend.texts, backend.room = {}, int(args.memory * 2**30)
    site = Site(round(args.layer * backend.identity.num_layers))
    recipe = small_recipe(args.share, args.held_out, args.longest, args.layer)
    recipe = replace(recipe, fit={**recipe.fit, "layers": [str(site)]})
    gathered = gather(recipe, data=args.data_dir, permissive_only=True)
    counts = {each.part.name: len(each.conversations) for each in gathered}
    print(counts, flush=True)
    facts = {"model": Path(args.model).name, "site": str(site), "answers": counts, "epochs": args.epochs}
    facts |= {"share": args.share, "held_out": args.held_out, "longest": args.longest}
    rows: list[dict[str, Any]] = []
    if args.out.is_file():
        there = json.loads(args.out.read_text(encoding="utf-8"))
        if {name: there.get(name) for name in facts} != facts:
            raise SystemExit(f"{args.out} was measured with other arguments or answers; give another -o")
        rows = there["rows"]
    few, many = min(args.tokens), max(args.tokens)
    names = ["header", f"begins {few}", f"trained {few}", f"begins {many}", f"trained {many}"]
    names += [f"{kind} {count}" for count in args.tokens for kind in ("begins", "trained")]
    names += [f"random {few}", f"random {many}"]
    for name in dict.fromkeys(names):
        if name in {row["arm"] for row in rows}:
            continue
        print(name, flush=True)
        rows.append(arm(name, backend, gathered, recipe, args.work, args.epochs))
        args.out.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        args.out.with_suffix(".md").write_text(markdown(rows), encoding="utf-8")
        print(markdown(rows[-1:]), flush=True)


if __name__ == "__main__":
    main()
