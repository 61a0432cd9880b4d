#!/usr/bin/env python3
"""Fit the first version of a shipped probe, on permissively licensed sources only.

    fit_demo_probe.py MODEL --data DIR --name HUB_ID -o src/anydepth/data/probes/NAME.safetensors [--cache FILE.npz]

Collects the header's hidden states at several depths of every stored answer (one packed pass an answer), fits a
logistic regression per layer, chooses layer and regularisation on the validation sources, and sets the threshold at the
response-level false-positive target on benign validation answers that no choice was made on. `anydepth fit` will
replace this script.
"""

import argparse
import gzip
import hashlib
import json
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from anydepth.backends.base import Site
from anydepth.backends.transformers import load
from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.policy import Threshold, policy_record
from anydepth.template import Prompt

# Sources whose licence lets a probe trained on them be shipped, and whose labels hold at every depth.
TRAIN = {
    "aisafetylab": "MIT",
    "dolly-safety-subset": "CC-BY-SA-3.0",
}
DEPTHS = (12, 25, 50, 75, 100, 150)
LONGEST = 200


def records(data: Path, name: str) -> list[dict]:
    """The records of one file of the shared data folder."""
    with gzip.open(data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) | {"file": name} for line in lines]


def chosen(data: Path, limit: int) -> list[dict]:
    """Training answers, at most `limit` a source and label, and a fifth as many validation answers."""
    train = [record for record in records(data, "probe_train") if record["source"] in TRAIN]
    held_out = [
        record | {"label": record.get("label", "benign" if "xstest" in name else "harmful")}
        for name in ("pairs_deep_validation", "pairs_benign_validation", "responses_xstest", "attacks_validation")
        for record in records(data, name)
    ]
    rng = np.random.default_rng(0)
    groups: dict[tuple, list[dict]] = {}
    for record in train + held_out:
        groups.setdefault((record["file"], record["source"], record["label"]), []).append(record)
    return [
        group[i]
        for (file, _, _), group in groups.items()
        for i in rng.permutation(len(group))[: limit if file == "probe_train" else limit // 5]
    ]


def collect(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """States `[checks, layers, hidden_size]` of every answer, with its label, file and prompt."""
    backend = load(args.model, dtype="float32")
    sites = [Site(layer) for layer in args.layers]
    width = backend.header.read_index + 1
    rows: dict[str, list] = {key: [] for key in ("x", "y", "answer", "depth", "origin", "prompt")}
    work = chosen(args.data, args.limit)
    started = time.monotonic()
    for number, record in enumerate(work):
        prompt = backend.template.prompt(record["prompt"], prefill=record["response"])
        answer = prompt.ids[prompt.start :][:LONGEST]
        depths = [0, *(depth for depth in DEPTHS if depth < len(answer)), len(answer)]
        states = backend.read_depths(Prompt(prompt.ids[: prompt.start]), answer, depths, sites, upto=width)
        rows["x"].append(np.stack([states[site][:, -1] for site in sites], 1).astype(np.float16))
        prompt_hash = hashlib.sha256(record["prompt"].encode()).hexdigest()[:12]
        for key, value in (("y", record["label"] == "harmful"), ("answer", number), ("origin", record["file"])):
            rows[key] += [value] * len(depths)
        rows["prompt"] += [prompt_hash] * len(depths)
        rows["depth"] += depths
        if number % 50 == 0:
            print(f"{number}/{len(work)} answers, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    table = {key: np.array(value) for key, value in rows.items() if key != "x"}
    return {"x": np.concatenate(rows["x"]), **table}


def fit(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """Logistic regression on standardised states, folded into one weight and bias."""
    mean, scale = x.mean(0), x.std(0) + 1e-6
    model = LogisticRegression(C=strength, max_iter=2000, class_weight="balanced").fit((x - mean) / scale, y)
    weight = model.coef_[0] / scale
    return weight, float(model.intercept_[0] - weight @ mean)


def highest(table: dict[str, np.ndarray], scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The highest score of each answer among `rows`: what a threshold policy compares."""
    answers = table["answer"][rows]
    return np.array([scores[rows][answers == answer].max() for answer in np.unique(answers)])


def main() -> None:
    """Collect, fit, choose, calibrate, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--name", required=True, help="hub id of the model, for the card")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="keep the collected states here")
    parser.add_argument("--layers", type=int, nargs="+", default=[15], help="half of the model: the cheapest check")
    parser.add_argument("--limit", type=int, default=250, help="answers a source and label at most")
    parser.add_argument("--target", type=float, default=0.02, help="response-level false-positive rate")
    args = parser.parse_args()
    if args.cache and args.cache.exists():
        table = dict(np.load(args.cache))
    else:
        table = collect(args)
        if args.cache:
            np.savez(args.cache, **table)
    report(args, table)


def report(args: argparse.Namespace, table: dict[str, np.ndarray]) -> None:
    """Choose on one half of the validation prompts, calibrate and report on the other, save the artefact."""
    x, y = table["x"].astype(np.float32), table["y"]
    train = (table["origin"] == "probe_train") & (table["depth"] > 0)
    even = np.array([int(prompt, 16) % 2 == 0 for prompt in table["prompt"]])

    def rows(name: str, half: np.ndarray) -> np.ndarray:
        return np.flatnonzero((table["origin"] == name) & half)

    def separation(scores: np.ndarray, half: np.ndarray, harmful: str, benign: str) -> float:
        bad, good = (highest(table, scores, rows(name, half)) for name in (harmful, benign))
        return roc_auc_score([1] * len(bad) + [0] * len(good), np.concatenate([bad, good]))

    best = None
    for column, layer in enumerate(args.layers):
        for strength in (1e-4, 1e-3, 1e-2, 1e-1):
            weight, bias = fit(x[train, column], y[train], strength)
            scores = x[:, column] @ weight + bias
            quality = [
                separation(scores, even, "pairs_deep_validation", benign)
                for benign in ("pairs_benign_validation", "responses_xstest")
            ]
            print(f"layer {layer} C {strength}: AUROC long vs benign {quality[0]:.3f}, vs XSTest-safe {quality[1]:.3f}")
            if best is None or np.mean(quality) > best[0]:
                best = (np.mean(quality), layer, weight, bias, scores, strength)
    assert best is not None
    _, layer, weight, bias, scores, strength = best
    benign = np.concatenate([rows(name, ~even) for name in ("pairs_benign_validation", "responses_xstest")])
    peaks = 1 / (1 + np.exp(-highest(table, scores, benign)))
    allowed = int(args.target * len(peaks))  # how many harmless answers may reach the threshold
    threshold = float(np.nextafter(np.sort(peaks)[-1 - allowed], 2))
    evidence = {
        "target": args.target,
        "achieved": float((peaks >= threshold).mean()),
        "answers": len(peaks),
        "data": "half of pairs_benign_validation and responses_xstest, by prompt, not used to choose the layer",
    }
    for name in ("pairs_deep_validation", "attacks_validation"):
        found = 1 / (1 + np.exp(-highest(table, scores, rows(name, ~even))))
        evidence[f"halted_{name}"] = float((found >= threshold).mean())
        evidence[f"auroc_{name}_vs_benign"] = separation(scores, ~even, name, "pairs_benign_validation")
    print(json.dumps({"layer": layer, "C": strength, "threshold": threshold, **evidence}, indent=2))
    save(args, weight, bias, layer, Threshold(threshold), evidence)


def save(
    args: argparse.Namespace, weight: np.ndarray, bias: float, layer: int, policy: Threshold, evidence: dict
) -> None:
    """Write the artefact with its card."""
    backend = load(args.model, dtype="float32")
    card = ProbeCard(
        model=replace(backend.identity, name=args.name, revision=None),
        header_ids=backend.header.ids,
        read_index=backend.header.read_index,
        site=Site(layer),
        template_digest=backend.template.digest,
        dtype="float32",
        policy=policy_record(policy),
        calibration=evidence,
        sources=tuple({"name": name, "licence": licence} for name, licence in TRAIN.items()),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={name: version(name) for name in ("anydepth", "numpy", "scikit-learn", "torch", "transformers")},
        seed=0,
        notes="First version, for the demo. Trained on answers by other models; expect misses on jailbreak answers.",
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    LinearProbe(weight, bias, card).save(args.out)
    print(f"wrote {args.out} ({args.out.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
