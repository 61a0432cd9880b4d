"""Make traces with thoughts out of stored answers and of the refusing traces of STAR-1, for the suite `thoughts`.

python benchmarks/constructed_thoughts.py --data-dir DIR --star1 STAR-1.json -o thoughts.jsonl

DIR has the labelled tables of `docs/data.md`; STAR-1.json is `data/STAR-1.json` of the repository UCSC-VLAA/STAR-1
(Apache-2.0). Only prompts are used on which no choice of the shipped probes was made, and no request of STAR-1 that is
nearly in `probe_train` or `probe_validation`. The file holds harmful texts: keep it out of every repository.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src")]

from anydepth.conversations import Conversation, load  # noqa: E402
from anydepth.conversations.splits import distinct, drop_near_duplicates  # noqa: E402
from anydepth.evals.answers.thought_traces import parts  # noqa: E402
from anydepth.probes.recipe.pairs import half  # noqa: E402

HARMFUL, HARMLESS = ("pairs_deep_validation",), ("pairs_benign_validation", "responses_xstest")
THOUGHT, ANSWER, STRETCH, LEAST = 220, 110, 90, 150
"""Words of a thought, of an answer, of the stretch that is put into a thought, and of an answer that is used."""

Row = Mapping[str, Any]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--star1", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    sources = [[row for name in names for row in unseen(name, given.data_dir)] for names in (HARMFUL, HARMLESS)]
    known = [row for name in ("probe_train", "probe_validation") for row in load(name, data=given.data_dir)]
    refusing = drop_near_duplicates(star1(json.loads(given.star1.read_text(encoding="utf-8"))), known).kept
    rows = list(traces(*sources, refusing))
    given.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for case in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == case]
        print(f"{case}: {len(own)} traces, {len({row['prompt'] for row in own})} requests")


def unseen(name: str, folder: Path) -> list[Conversation]:
    """Long enough answers to the half of the prompts that no choice was made on, one order for every run."""
    rows = distinct(row for row in load(name, data=folder) if len(row.response.split()) >= LEAST).kept
    mask = half([row.prompt_key for row in rows], 1)
    return sorted((row for row, kept in zip(rows, mask, strict=True) if kept), key=lambda row: _order(row.id))


def star1(rows: Sequence[Row]) -> list[Conversation]:
    """The traces of STAR-1 as conversations: harmful requests, thoughts about the policy, refusals."""
    found = []
    for row in rows:
        trace = Conversation(
            f"star1-{row['id']}",
            ({"role": "user", "content": row["question"]},),
            row["response"],
            "benign",
            "star1",
            "Apache-2.0",
        )
        if all(parts(trace)):
            found.append(trace)
    return sorted(found, key=lambda row: _order(row.id))


def traces(
    harmful: Sequence[Conversation], harmless: Sequence[Conversation], refusing: Sequence[Conversation]
) -> Iterator[Row]:
    """The rows of the table, case by case; see docs/evaluate.md for what each case is."""
    for case, rows, request in (("harm throughout", harmful, "harmful"), ("harmless throughout", harmless, "harmless")):
        for row in rows:
            thought, answer = _halves(row)
            yield _row(case, row, thought, answer, row.label, request)
    for row, other in zip(harmful, cycle(refusing), strict=False):
        yield _row("harm in the thought, refusal", row, _halves(row)[0], parts(other)[1], "harmful", "harmful")
    for row, other in zip(harmless, cycle(harmful), strict=False):
        yield _row("harm inside a harmless thought", row, *_with_stretch(row, other), "harmful", "harmless")
    for row, other in zip(harmless, _shifted(harmless), strict=True):
        yield _row("another harmless text inside", row, *_with_stretch(row, other), "benign", "harmless")
    for row in refusing:
        yield _row("refused after thought", row, *parts(row), "benign", "harmful")


def _halves(row: Conversation) -> tuple[str, str]:
    words = row.response.split(" ")
    cut = min(THOUGHT, 2 * len(words) // 3)
    return " ".join(words[:cut]), " ".join(words[cut : cut + ANSWER])


def _with_stretch(row: Conversation, other: Conversation) -> tuple[str, str]:
    """A thought of the row's own text with a stretch of another in its middle, and the rest as the answer."""
    own, put = row.response.split(" "), other.response.split(" ")[:STRETCH]
    cut = min(THOUGHT - STRETCH, 2 * len(own) // 3)
    thought = [*own[: cut // 2], *put, *own[cut // 2 : cut]]
    return " ".join(thought), " ".join(own[cut : cut + ANSWER])


def _shifted(rows: Sequence[Conversation]) -> list[Conversation]:
    """For each row one of another request."""
    found = []
    for place, row in enumerate(rows):
        others = (rows[(place + step) % len(rows)] for step in range(len(rows) // 2, len(rows) // 2 + len(rows)))
        found.append(next(other for other in others if other.prompt_key != row.prompt_key))
    return found


def _row(case: str, row: Conversation, thought: str, answer: str, label: str | None, request: str) -> Row:
    return {
        "id": f"{case.replace(' ', '-')}-{row.id}",
        "source": row.source,
        "licence": row.licence,
        "prompt": row.prompt,
        "response": f"<think>\n{thought}\n</think>\n\n{answer}",
        "label": label,
        "case": case,
        "request": request,
    }


def _order(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


if __name__ == "__main__":
    main()
