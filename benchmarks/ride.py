#!/usr/bin/env python3
"""What checks that ride in the decode step gain over checks on forks, and how many greedy answers they change.

    ride.py MODEL [--probe PROBE] [--intervals 1 5 25] [--rounds 3] [--tokens 100] [--answers 20] [-o FILE.json]

Each round writes one answer unguarded and, for each interval, one with riding checks and one with forks, in turn, in
the other order each second round. A speed is the unguarded model's seconds over the guarded answer's: the median over
the rounds with all of their values. The prompt is the same and no answer ends early. `slowest gap` is the 99th
percentile of the times from one release to the next, in the unguarded model's seconds per token.

Then `--answers` greedy answers of `--tokens` tokens to different prompts are written three times: by the bare model,
with forks and with riding checks, at the smallest interval. Counted are the answers that part from the bare model's and
from each other, with the place of the first other token. `--dtype bfloat16` is the case of interest.
"""

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from anydepth.atomic import write_whole
from anydepth.backends.transformers import TransformersBackend, load
from anydepth.bench.timing import FILLER, QUESTION_TOKENS, endless, filled, seconds
from anydepth.detectors import LinearProbe
from anydepth.detectors.probe import find_shipped
from anydepth.guard import Guard
from anydepth.policy import Cusum
from anydepth.schedule import Every
from anydepth.templates.template import Prompt
from anydepth.types import Released

WAYS = ("always", "never")


def guard_of(backend: TransformersBackend, probe: LinearProbe, interval: int) -> Guard:
    """A guard that never halts."""
    schedule = Every(interval, doubling=False)
    return Guard.from_backend(backend, probe, policy=Cusum(threshold=1e9), schedule=schedule)


def one_round(
    backend: TransformersBackend, guards: dict[int, Guard], tokens: int, ways: Sequence[str]
) -> dict[str, float]:
    """Seconds of an answer of `tokens` tokens, unguarded and by `INTERVAL, WAY`."""
    asked = filled(backend, QUESTION_TOKENS)
    found = {"unguarded": seconds(lambda: backend.unguarded([asked], max_new_tokens=tokens, **endless(backend)))}
    for interval, guard in guards.items():
        for way in ways:
            backend.ride = way
            started, times = time.perf_counter(), list[float]()
            turns = guard.turns([asked], max_new_tokens=tokens, **endless(backend))
            times += [time.perf_counter() for turn in turns for _, event in turn if isinstance(event, Released)]
            found[f"{interval}, {way}"] = time.perf_counter() - started
            if len(times) > 2:
                gap = float(np.quantile(np.diff(times), 0.99))
                found[f"{interval}, {way}, slowest gap"] = gap * tokens / found["unguarded"]
    return found


def prompts(backend: TransformersBackend, count: int) -> list[Prompt]:
    """Questions that differ in one number and in their length."""
    words = FILLER.split()
    return [backend.template.prompt(f"{n} cups: {' '.join(words[: 4 + n % 9])} Why?") for n in range(1, count + 1)]


def written(guard: Guard, prompt: Prompt, tokens: int) -> tuple[int, ...]:
    """The tokens of a guarded greedy answer."""
    turns = guard.turns([prompt], max_new_tokens=tokens, do_sample=False)
    events = (event for turn in turns for _, event in turn)
    return tuple(token for event in events if isinstance(event, Released) for token in event.token_ids)


def parting(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Where two answers part; None if they are the same."""
    if one == other:
        return None
    same = (index for index, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    return next(same, min(len(one), len(other)))


def compare(backend: TransformersBackend, guard: Guard, count: int, tokens: int) -> Iterable[dict[str, int | None]]:
    """Per answer, where the riding and the forking one part from the bare model's, and from each other."""
    for prompt in prompts(backend, count):
        (bare,) = backend.unguarded([prompt], max_new_tokens=tokens, do_sample=False)
        answers = {}
        for way in WAYS:
            backend.ride = way
            answers[way] = written(guard, prompt, tokens)
        yield {
            "ride, bare": parting(answers["always"], bare),
            "fork, bare": parting(answers["never"], bare),
            "ride, fork": parting(answers["always"], answers["never"]),
        }


def summary(rounds: Sequence[dict[str, float]], parts: Sequence[dict[str, int | None]]) -> dict[str, Any]:
    """Speeds over the unguarded model's by interval and way, and counts of answers that part."""
    speeds, gaps = {}, {}
    for name in (name for name in rounds[0] if name != "unguarded") if rounds else ():
        if name.endswith("slowest gap"):
            gaps[name] = median(each[name] for each in rounds)
            continue
        values = [each["unguarded"] / each[name] for each in rounds]
        speeds[name] = {"median": median(values), "values": values}
    counts = {name: sum(each[name] is not None for each in parts) for name in (parts[0] if parts else ())}
    return {
        "speed over unguarded": speeds,
        "slowest gaps in steps": gaps,
        "answers": len(parts),
        "answers that part": counts,
    }


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--probe")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device")
    parser.add_argument("--intervals", type=int, nargs="+", default=[1, 5, 25])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=100, help="of each answer")
    parser.add_argument("--answers", type=int, default=20, help="that are compared token for token")
    parser.add_argument("-o", "--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure and compare; the file is written anew after each round and answer."""
    given = arguments()
    backend = load(given.model, dtype=given.dtype, device=given.device, ride="always")
    probe = LinearProbe.load(given.probe) if given.probe else find_shipped(backend)
    if probe is None:
        raise SystemExit("no probe is shipped for this model; give --probe, e.g. one that any_probe.py writes")
    guards = {interval: guard_of(backend, probe, interval) for interval in given.intervals}
    about = {"model": Path(given.model).name, "dtype": str(backend.model.dtype), "device": str(backend.model.device)}
    about |= {"reads": [str(read) for read in probe.reads], "tokens": given.tokens}
    rounds, parts = list[dict[str, float]](), list[dict[str, int | None]]()

    def keep() -> None:
        whole = {**about, **summary(rounds, parts), "seconds": rounds, "parting": parts}
        if given.out:
            write_whole(given.out, (json.dumps(whole, indent=1) + "\n").encode())

    one_round(backend, guards, min(given.tokens, 8), WAYS)  # the first passes are slow
    for number in range(given.rounds):
        rounds.append(one_round(backend, guards, given.tokens, WAYS if number % 2 else WAYS[::-1]))
        print(number + 1, json.dumps({name: round(value, 3) for name, value in rounds[-1].items()}), flush=True)
        keep()
    for each in compare(backend, guards[min(guards)], given.answers, given.tokens):
        parts.append(each)
        keep()
    found = summary(rounds, parts)
    for name, speed in found["speed over unguarded"].items():
        print(f"{name}: {speed['median']:.3f} of the unguarded speed")
    print(f"slowest gaps, in unguarded steps: {json.dumps(found['slowest gaps in steps'])}")
    print(f"of {len(parts)} answers part: {json.dumps(found['answers that part'])}")


if __name__ == "__main__":
    main()
