#!/usr/bin/env python3
"""How much more memory a guarded answer takes than an unguarded one, at a long context.

    peak_memory.py MODEL [--probe PROBE] [--context 8192] [--interval 25] [--tokens 100] [-o FILE.json]

Each way runs in a process of its own, which loads the model and writes one answer: `unguarded`, `forks` (checks on a
fork of the cache) and `ride` (checks in the decode steps). `peak` is the most memory that the process had, weights
included; `growth` is what the answer added to it. Ratios are over `unguarded`. Linux only.

The C library's allocator keeps freed memory below a size that it moves, so that the same way took up to 5 % more in one
run than in the next. Its size is fixed here: a tensor of more than 1 MB is given back when it is freed.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from anydepth.atomic import write_whole
from anydepth.backends.transformers import TransformersBackend, load
from anydepth.backends.transformers.memory import peak_growth
from anydepth.bench.timing import FILLER, endless, guarded_answer
from anydepth.detectors import LinearProbe
from anydepth.detectors.probe import find_shipped
from anydepth.guard import Guard
from anydepth.policy import Cusum
from anydepth.schedule import Every
from anydepth.templates.template import Prompt

WAYS = {"unguarded": "never", "forks": "never", "ride": "always"}


def asked(backend: TransformersBackend, length: int) -> Prompt:
    """A question of about `length` tokens. It is no prefill: a scan of its inside would count as well."""
    filler = len(backend.tokenizer.encode(FILLER, add_special_tokens=False))
    spare = len(backend.template.prompt("Why?").ids)
    return backend.template.prompt(FILLER * max(1, (length - spare) // filler))


def one(given: argparse.Namespace) -> dict[str, Any]:
    """The memory of one way, in bytes, in this process."""
    backend = load(given.model, dtype=given.dtype, ride=WAYS[given.way])
    probe = LinearProbe.load(given.probe) if given.probe else find_shipped(backend)
    if probe is None:
        raise SystemExit("no probe is shipped for this model; give --probe, e.g. one that any_probe.py writes")
    guard = Guard.from_backend(
        backend, probe, policy=Cusum(threshold=1e9), schedule=Every(given.interval, doubling=False)
    )
    prompt = asked(backend, given.context)
    guarded_answer(guard, asked(backend, 64), 8)  # what is made once per process is made before

    def work() -> None:
        if given.way == "unguarded":
            backend.unguarded([prompt], max_new_tokens=given.tokens, **endless(backend))
        else:
            guarded_answer(guard, prompt, given.tokens)

    growth = peak_growth(work)
    if growth is None:
        raise SystemExit("the peak of a process cannot be read here; this needs Linux")
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(fields["VmHWM"].split()[0]) * 1024
    return {"way": given.way, "context": len(prompt.ids), "peak": peak, "growth": growth}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--probe", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--interval", type=int, default=25)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--way", choices=WAYS, help="this way alone, in this process")
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(one(given)))
        return
    rows = []
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        found = subprocess.run(
            command,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"},
        ).stdout
        rows.append(json.loads(found.splitlines()[-1]))
        for what in ("peak", "growth"):
            rows[-1][f"{what} ratio"] = round(rows[-1][what] / rows[0][what], 4)
        print(json.dumps(rows[-1]), flush=True)
    if given.out:
        record = {"model": Path(given.model).name, "dtype": given.dtype, "interval": given.interval, "ways": rows}
        write_whole(given.out, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
