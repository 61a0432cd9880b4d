#!/usr/bin/env python3
"""What a probe's reads cost: a check, a guarded answer and a scan, each measured in turn with the header's state alone.

    read_cost.py MODEL [--probe PROBE] [--against SITE@TOKEN] [--rounds 9] [-o FILE.json]

`--probe` is a probe file or folder, by default the one that the package ships for the model. `--against` is what is
compared with: one read, by default the last header token that the probe reads, at the highest of its sites. Its weights
do not matter here. Ratios are the probe over the other; the median over the rounds and its 95 % bootstrap
interval.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from anydepth.atomic import write_whole
from anydepth.backends.protocol import Read, last_header_token
from anydepth.backends.transformers.load import load
from anydepth.bench.timing import check_times, filled, seconds, throughput
from anydepth.config import GuardConfig
from anydepth.detectors import LinearProbe
from anydepth.detectors.probe import find_shipped
from anydepth.scan import scan_answer

CONTEXTS = (128, 512)


def header_only(probe: LinearProbe, text: str | None) -> LinearProbe:
    """A probe of one header read of the same model."""
    if text is None:
        site = max((read.site for read in probe.reads), key=lambda each: each.block)
        read = Read(site, max(last_header_token(probe.reads), 0))
    else:
        read = Read.parse(text)
    weight = np.full((1, probe.card.model.hidden_size), 1e-3, np.float32)
    return LinearProbe(weight, 0.0, replace(probe.card, reads=(read,)))


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """Median of the ratios and its interval."""
    ratios = np.array(over) / np.array(under)
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high), "rounds": len(ratios)}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--probe")
    parser.add_argument("--against")
    parser.add_argument("--dtype", default="fast")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    backend = load(given.model, dtype=given.dtype)
    probe = LinearProbe.load(given.probe) if given.probe else find_shipped(backend)
    if probe is None:
        raise SystemExit("no probe for this model is shipped; name one with --probe")
    other = header_only(probe, given.against)
    found = {"model": given.model, "reads": [str(each) for each in probe.reads], "against": str(other.reads[0])}
    for context in CONTEXTS:
        length, times = check_times(backend, {"probe": probe, "other": other}, context, 2 * given.rounds)
        found[f"check at {length} tokens"] = ratio(times["probe"], times["other"])
        found[f"check at {length} tokens, steps"] = ratio(times["probe"], times["step"])
    rates: dict[str, list[float]] = {"probe": [], "other": []}
    for number in range(given.rounds):
        order = (("probe", probe), ("other", other))
        for name, each in order if number % 2 else order[::-1]:
            rates[name].append(throughput(backend, each, 25, 100))
    found["guarded over unguarded"] = {name: float(np.median(each)) for name, each in rates.items()}
    found["guarded throughput"] = ratio(rates["probe"], rates["other"])
    prompt, config = filled(backend, 440, answer=400), GuardConfig()
    scans: dict[str, list[float]] = {"probe": [], "other": []}
    for number in range(given.rounds):
        order = (("probe", probe), ("other", other))
        for name, each in order if number % 2 else order[::-1]:
            scans[name].append(seconds(lambda each=each: scan_answer(backend, each, config, prompt)))
    found["scan of 400 tokens"] = ratio(scans["probe"], scans["other"])
    text = json.dumps(found, indent=1)
    print(text)
    if given.out:
        write_whole(given.out, (text + "\n").encode())


if __name__ == "__main__":
    main()
