"""Try both contracts on a tiny random model of every causal language model of Transformers.

`python -m benchmarks.architectures` writes architectures.json beside this file, one entry a shape; `--page` writes the
table of docs/architectures.md from it. Each shape runs in a process of its own, forked from one that has the libraries.
"""

import argparse
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.architecture_shapes import VARIANTS, build, model_types
from tests.contract.architectures import MARK, PAGE

HERE = Path(__file__).resolve().parent
RECORD = HERE / "architectures.json"
SECONDS = 90
"""Processor time that one shape may take, in seconds."""


_LIBRARY = {
    "moshi": "the library's pass without a cache has no sliding window, and its pass with one has "
    "(findings/moshi-window-only-in-cache.sh)",
}
"""Shapes whose states cannot be compared with a recompute, since the library disagrees with itself."""


_GUESSED = {
    "mllama": "the default site of the sweep's tiny configuration is a block for images, which text alone does not "
    "run; of 40 blocks, as in the library's default, it is block 27, which is for text",
}
"""Shapes that are refused for what the sweep made of them."""


def tried(shape: str) -> dict[str, Any]:
    """What becomes of one shape, in this process: `outcome`, and what explains it."""
    from benchmarks.architecture_trial import trial

    try:
        model = build(shape)
    except Exception as error:  # the library's constructor, on a configuration that was guessed
        return {"outcome": "not built", "note": f"{type(error).__name__}: {error}"}
    try:
        return trial(model)
    except Exception as error:
        where = [f"{each.filename}:{each.lineno}" for each in traceback.extract_tb(error.__traceback__)][-3:]
        return {"outcome": "crash", "note": f"{type(error).__name__}: {error}", "where": where}


def in_a_process(shape: str, folder: Path) -> dict[str, Any]:
    """`tried` in a child that is stopped after `SECONDS`."""
    out = folder / f"{shape.replace('/', '_')}.json"
    began = time.monotonic()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        log = os.open(folder / f"{shape}.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        out.write_text(json.dumps(tried(shape)))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    seconds = round(time.monotonic() - began, 1)
    if status:
        found = {"outcome": "no result", "note": f"ended with status {status} after {seconds} s"}
    else:
        found = json.loads(out.read_text())
    return {"shape": shape, **found, "seconds": seconds}


def _not_run(there: set[str]) -> list[str]:
    """A sentence about the shapes that the record lacks; none if it has them all."""
    lacking = [shape for shape in (*model_types(), *VARIANTS) if shape not in there]
    return [f"Not run on this version ({len(lacking)}): {', '.join(lacking)}."] if lacking else []


def page(record: dict[str, Any]) -> str:
    """The section of docs/architectures.md."""
    rows = record["shapes"]
    for row in rows:
        if row["shape"] in _LIBRARY:
            row |= {"outcome": "differs", "note": _LIBRARY[row["shape"]]}
        if row["shape"] in _GUESSED and row["outcome"] != "passes":
            row |= {"outcome": "not tried", "note": _GUESSED[row["shape"]]}
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["outcome"]] = counts.get(row["outcome"], 0) + 1
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items(), key=lambda each: -each[1]))
    lines = [
        MARK,
        "",
        "## Every causal language model of Transformers",
        "",
        f"A sweep over {len(rows)} shapes with Transformers {record['transformers']}, float32, on one thread: {told}.",
        *_not_run({row["shape"] for row in rows}),
        "",
        "*Passes*: the guarded answer is that of plain `generate`, alone, in a padded batch and with look-aheads",
        "in between, and each state differs from that of a pass over the whole text by at most 1e-4 of the state's",
        "largest number: on forks, and in a packed pass where the column says so. Tiny models with random weights,",
        "texts of up to 100 tokens, past every window. Where the library gives a padded row other positions than",
        "the row has alone, the pass over the whole text is padded too. Indexers that pick tokens pick all of them",
        "here (`index_topk` is larger than the texts): where they leave some out, a recompute of the tiny",
        "DeepSeek-V3.2 and V4 differed, and the cause was not found.",
        "",
        "| model type | outcome | scan | default site | note |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        note = " ".join(str(row.get("note", "")).split()).replace("|", "\\|").replace("<", "&lt;")
        scan = {True: "packed", False: "forks"}.get(row.get("packed"), "")
        lines.append(f"| {row['shape']} | {row['outcome']} | {scan} | {row.get('site', '')} | {note[:400]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Sweep the named shapes, or all of them; or write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", help="model types or variants; by default all that the record lacks")
    parser.add_argument("--page", action="store_true", help="write docs/architectures.md from the record, and end")
    parser.add_argument("--logs", type=Path, default=Path("/tmp/anydepth-architectures"), help="where children write")
    parser.add_argument("--record", type=Path, default=RECORD)
    given = parser.parse_args()
    record = json.loads(given.record.read_text()) if given.record.exists() else {"shapes": []}
    if given.page:
        before = PAGE.read_text(encoding="utf-8").partition(MARK)[0].rstrip()
        PAGE.write_text(f"{before}\n\n{page(record)}", encoding="utf-8")
        return
    import torch
    import transformers

    torch.set_num_threads(1)
    given.logs.mkdir(parents=True, exist_ok=True)
    rows = {row["shape"]: row for row in record["shapes"]}
    for shape in given.shapes or [each for each in (*model_types(), *VARIANTS) if each not in rows]:
        rows[shape] = in_a_process(shape, given.logs)
        print(json.dumps(rows[shape])[:300], file=sys.stderr, flush=True)
        record = {"transformers": transformers.__version__, "shapes": [rows[name] for name in sorted(rows)]}
        given.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
