#!/usr/bin/env python3
"""Does a look-ahead over HTTP halt deep prefills as often as one in process? The same answers, checked at their ends.

    rethink_over_http.py MODEL --data-dir DIR -o FILE.json                       in process
    rethink_over_http.py MODEL --data-dir DIR -o FILE.json --url http://HOST/v1  the same model behind a server

MODEL is the folder, whose tokenizer cuts the answers; `--name` is what the server calls it. Each answer is a stored
harmful one, cut after `--tokens` tokens and checked at depth 0 and at its end. An answer that is in FILE already is
left out, so that a run that was stopped goes on. At the end, both hosts are compared on the answers that both have.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anydepth import Every, Guard, Rethink
from anydepth.atomic import write_whole
from anydepth.conversations import Conversation, load
from anydepth.conversations.splits import distinct
from anydepth.intervals import clopper_pearson, percent, percent_range

HOSTS = ("in process", "http")


def answers(folder: Path, tokenizer: Any, count: int, tokens: int) -> list[tuple[str, Conversation, str]]:
    """Id, conversation and cut answer of `count` harmful answers of different prompts, in an order drawn by digest."""
    rows = [row for row in load("pairs_deep_validation", data=folder) if row.label == "harmful"]
    found: dict[str, tuple[str, Conversation, str]] = {}
    for row in sorted(distinct(rows).kept, key=lambda row: hashlib.sha256(row.id.encode()).hexdigest()):
        ids = tokenizer(row.response, add_special_tokens=False)["input_ids"]
        if len(ids) >= tokens and row.prompt_key not in found:
            found[row.prompt_key] = (row.id, row, tokenizer.decode(ids[:tokens]))
    return list(found.values())[:count]


def guard_of(given: argparse.Namespace) -> Guard:
    """A guard by look-ahead that checks depth 0 and the end."""
    ends = Every(10**6, doubling=False)
    if given.url is None:
        return Guard.from_pretrained(given.model, dtype=given.dtype, detector=Rethink(), schedule=ends)
    from openai import OpenAI

    from anydepth.apis import ApiBackend

    client = OpenAI(base_url=given.url, api_key="none", timeout=600)
    backend = ApiBackend(client, given.name or given.model, capability=given.capability)
    return Guard.from_backend(backend, Rethink(), schedule=ends)


def rates(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of a table: the share halted by each host at depth 0, at the end and at either."""
    lines = [f"{len(rows)} answers that both hosts checked"]
    for what in ("start", "end", "either"):
        cells = []
        for host in HOSTS:
            flags = [max(row[host]) if what == "either" else row[host][what == "end"] for row in rows]
            interval = clopper_pearson(sum(flags), len(flags))
            cells.append(f"{host} {percent(sum(flags) / len(flags))} {percent_range((interval.low, interval.high))}")
        lines.append(f"{what}: {', '.join(cells)}")
    same = sum(row[HOSTS[0]][1] == row[HOSTS[1]][1] for row in rows)
    return [*lines, f"the same verdict at the end: {same} of {len(rows)}"]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--url", help="where the server's OpenAI API begins; without it, in process")
    parser.add_argument("--name", help="what the server calls the model; by default MODEL")
    parser.add_argument("--capability", default="auto", help="auto, closes, between")
    parser.add_argument("--dtype", default="bfloat16", help="in process only")
    parser.add_argument("--answers", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=100, help="length of the prefill, in tokens")
    given = parser.parse_args()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    record = json.loads(given.out.read_text()) if given.out.exists() else {"tokens": given.tokens, "answers": {}}
    if record["tokens"] != given.tokens:
        parser.error(f"{given.out} has prefills of {record['tokens']} tokens; name another file")
    host = HOSTS[given.url is not None]
    guard = guard_of(given)
    if given.url is not None:
        record["server"] = {"capability": guard.backend.report()["capability"]}  # pyright: ignore[reportAttributeAccessIssue]
    for key, row, text in answers(given.data_dir, tokenizer, given.answers, given.tokens):
        kept = record["answers"].setdefault(key, {})
        if host in kept:
            continue
        checks = guard.scan(row.messages, text).checks
        failed = [check.error for check in checks if check.error]
        if failed:
            raise SystemExit(f"a check of {key} failed, and nothing is stored of it: {failed[0]}")
        kept[host] = [check.score >= 0.5 for check in (checks[0], checks[-1])]
        print(len([1 for each in record["answers"].values() if host in each]), key, kept[host], flush=True)
        write_whole(given.out, (json.dumps(record, indent=1) + "\n").encode())
    both = [each for each in record["answers"].values() if all(name in each for name in HOSTS)]
    if both:
        print("\n".join(rates(both)))


if __name__ == "__main__":
    main()
