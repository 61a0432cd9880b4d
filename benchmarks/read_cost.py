#!/usr/bin/env python3
"""What a probe's reads cost: a check, a guarded answer and a scan, each measured in turn with the header's state alone.

    read_cost.py MODEL [--probe PROBE] [--against SITE@TOKEN] [--rounds 5] [-o FILE.json]

`--probe` is a probe file or folder, by default the one that the package ships for the model. `--against` is what is
compared with: one read, by default the last header token that the probe reads, at the highest of its sites. Its weights
do not matter here. Each round measures everything once, in turn; its line is printed and the file written anew when it
is done, so that a run that is stopped leaves its rounds. Ratios are the probe over the other: the median over the
rounds and its 95 % bootstrap interval.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.atomic import write_whole
from anydepth.backends.protocol import Read, Session, last_header_token
from anydepth.backends.transformers.backend import TransformersBackend
from anydepth.backends.transformers.load import load
from anydepth.bench.timing import QUESTION_TOKENS, endless, filled, guarded_answer, room, seconds
from anydepth.config import GuardConfig
from anydepth.detectors import LinearProbe
from anydepth.detectors.probe import find_shipped
from anydepth.guard import Guard
from anydepth.policy import Cusum
from anydepth.scan import scan_answer
from anydepth.schedule import Every

STEPS = 4
"""Decode steps before each check."""


def header_only(probe: LinearProbe, text: str | None) -> LinearProbe:
    """A probe of one header read of the same model."""
    if text is None:
        site = max((read.site for read in probe.reads), key=lambda each: each.block)
        read = Read(site, max(last_header_token(probe.reads), 0))
    else:
        read = Read.parse(text)
    weight = np.full((1, probe.card.model.hidden_size), 1e-3, np.float32)
    return LinearProbe(weight, 0.0, replace(probe.card, reads=(read,)))


class Rounds:
    """Everything that is measured, once a round: `probe` and `other` in turn, in the other order each second round."""

    def __init__(
        self, backend: TransformersBackend, probes: Mapping[str, LinearProbe], given: argparse.Namespace
    ) -> None:
        self._backend, self._probes, self._tokens = backend, probes, given.tokens
        self._guards = {
            name: Guard.from_backend(backend, each, policy=Cusum(threshold=1e9), schedule=Every(25))
            for name, each in probes.items()
        }
        self._scanned, self._asked = (
            filled(backend, given.scan + 40, answer=given.scan),
            filled(backend, QUESTION_TOKENS),
        )
        self._sessions = {context: self._open(context, given.rounds) for context in given.contexts}

    def _open(self, context: int, rounds: int) -> Session:
        """An answer under way at `context` tokens, checked once: the first check of a mean may run the text again."""
        backend, spare = self._backend, room(rounds, STEPS)
        session = backend.open([filled(backend, context)], max_new_tokens=spare, **endless(backend))
        session.decode(STEPS)
        for each in self._probes.values():
            each.check(session, [session.current(0)])
        return session

    def measure(self, number: int) -> dict[str, float]:
        """Seconds of each part in round `number`, by `PART, NAME`."""
        names = list(self._probes) if number % 2 else list(self._probes)[::-1]
        backend, found = self._backend, dict[str, float]()
        for context, session in self._sessions.items():
            found[f"step at {context}"] = seconds(lambda s=session: s.decode(STEPS)) / STEPS
            for name in names:
                check = self._probes[name].check
                found[f"check at {context}, {name}"] = seconds(lambda s=session, c=check: c(s, [s.current(0)]))
        plain = {"max_new_tokens": self._tokens, **endless(backend)}
        found["answer, unguarded"] = seconds(lambda: backend.unguarded([self._asked], **plain))
        for name in names:
            guard, probe = self._guards[name], self._probes[name]
            found[f"answer, {name}"] = seconds(lambda g=guard: guarded_answer(g, self._asked, self._tokens))
            found[f"scan, {name}"] = seconds(lambda p=probe: scan_answer(backend, p, GuardConfig(), self._scanned))
        return found


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """Median of the ratios and its interval."""
    ratios = np.array(over) / np.array(under)
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high), "rounds": len(ratios)}


def ratios_of(rounds: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The probe over the other in each part, a check over a decode step, and guarded over unguarded answers."""
    parts = [key.removesuffix(", probe") for key in rounds[0] if key.endswith(", probe")]
    compared = {part: (f"{part}, probe", f"{part}, other") for part in sorted(parts)}
    for part in sorted(parts):
        if part.startswith("check"):
            compared[f"{part}, over a step"] = (f"{part}, probe", part.replace("check", "step"))
    for name in ("probe", "other"):
        compared[f"answer, {name} over unguarded"] = (f"answer, {name}", "answer, unguarded")
    return {what: ratio(*([each[key] for each in rounds] for key in keys)) for what, keys in compared.items()}


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--probe")
    parser.add_argument("--against")
    parser.add_argument("--dtype", default="fast")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contexts", type=int, nargs="+", default=[256], help="tokens before a check")
    parser.add_argument("--tokens", type=int, default=50, help="of an answer that is written")
    parser.add_argument("--scan", type=int, default=150, help="tokens of an answer that is scanned")
    parser.add_argument("-o", "--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure round by round, print and write."""
    given = arguments()
    backend = load(given.model, dtype=given.dtype)
    probe = LinearProbe.load(given.probe) if given.probe else find_shipped(backend)
    if probe is None:
        raise SystemExit("no probe for this model is shipped; name one with --probe")
    probes = {"probe": probe, "other": header_only(probe, given.against)}
    named = {"model": Path(given.model).name, "reads": [str(each) for each in probe.reads]}
    sizes = {"contexts": given.contexts, "answer_tokens": given.tokens, "scan_tokens": given.scan}
    about: dict[str, Any] = {**named, "against": str(probes["other"].reads[0]), **sizes}
    measured, seconds_of = Rounds(backend, probes, given), list[dict[str, float]]()
    for number in range(given.rounds):
        seconds_of.append(measured.measure(number))
        print(number + 1, json.dumps({key: round(value, 4) for key, value in seconds_of[-1].items()}), flush=True)
        if given.out:
            whole = {**about, "ratios": ratios_of(seconds_of), "seconds": seconds_of}
            write_whole(given.out, (json.dumps(whole, indent=1) + "\n").encode())
    for what, found in ratios_of(seconds_of).items():
        print(f"{what}: {found['median']:.3f} [{found['low']:.3f}, {found['high']:.3f}]")


if __name__ == "__main__":
    main()
