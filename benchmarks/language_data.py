"""Make the tables of the suite `languages` from clones of public repositories; no text of them is in this project.

    git clone https://github.com/mainlp/Multilingual-Refusal            (Apache-2.0: PolyRefuse and answers to it)
    git clone https://github.com/DAMO-NLP-SG/multilingual-safety-for-LLMs                        (MIT: MultiJail)
    python benchmarks/language_data.py POLYREFUSE --multijail MULTIJAIL --seen TABLE -o DIR/languages
    anydepth eval MODEL --suite languages --data-dir DIR -o RUN

A clone may be bare. Files that it lacks (a copy without large files) are left out and counted.
"""

import argparse
import csv
import gzip
import io
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from anydepth.conversations.corpora import load
from anydepth.conversations.dataset import digest, normalise

Row = dict[str, Any]

LANGUAGES = ("ar", "de", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "ru", "th", "yo", "zh")
GENERATORS = ("Qwen/Qwen2.5-7B-Instruct", "google/gemma-2-9b-it", "meta-llama/Meta-Llama-3.1-8B-Instruct")
_OUTPUT = "output/ja_vector_sweep/{}/{}/20250519-232436/1/completions/harmful_{}_evaluations.json"
_ARMS = {"baseline": "as it is", "harm_ablation": "refusal direction removed"}
_LONGEST = 1200
"""Characters of an answer that are kept: more than any scan of the suite reads."""


class Clone:
    """A clone of a repository, bare or not."""

    def __init__(self, folder: Path) -> None:
        self.git = folder if (folder / "HEAD").exists() else folder / ".git"
        self.lacking: list[str] = []

    def read(self, path: str) -> bytes | None:
        """The file at `path` in the newest commit; None if it is not there, or the clone lacks its content."""
        found = subprocess.run(["git", "--git-dir", self.git, "show", f"HEAD:{path}"], capture_output=True, check=False)
        if found.returncode:
            self.lacking.append(path)
            return None
        return found.stdout

    def rows(self, path: str) -> list[Row]:
        """The rows of a JSON list, or of the completions of an evaluation; none if the file is lacking."""
        found = json.loads(self.read(path) or b"[]")
        return found["completions"] if isinstance(found, dict) else found


def polyrefuse_requests(clone: Clone, most: int) -> Iterator[Row]:
    """Harmful and harmless requests, parallel in all languages but for the harmless ones in Chinese.

    Chinese has no harmless test part in the repository; its validation part takes its place, in an order of its own.
    """
    for language in LANGUAGES:
        for label in ("harmful", "harmless"):
            rows = clone.rows(f"PolyRefuse/{label}_test_translated_{language}.json")
            if not rows:
                rows = clone.rows(f"PolyRefuse/{label}_val_translated_{language}.json")
            rows.sort(key=lambda row: digest(normalise(row["instruction"])))
            for row in rows[:most]:
                text = row.get("instruction_translated") or row["instruction"]
                facts = {"language": language, "source": f"polyrefuse-{label}", "category": row.get("category")}
                yield _row(text, row["instruction"], "harmful" if label == "harmful" else "benign", facts)


def polyrefuse_answers(clone: Clone, most: int) -> Iterator[Row]:
    """Answers of three models to the harmful requests, as they are and with the refusal direction removed."""
    for generator in GENERATORS:
        for language in LANGUAGES:
            kept: Counter[tuple[str, str]] = Counter()
            for arm, written in _ARMS.items():
                rows = clone.rows(_OUTPUT.format(generator, language, arm))
                random.Random(0).shuffle(rows)
                for row in rows:
                    found = row["wildguard"]
                    harmful, refusal = bool(found["response_harmful"]), bool(found["refusal"])
                    kind = ("harmful" if harmful else "benign", "yes" if refusal else "no")
                    if not row["response"].strip() or (harmful and refusal) or kept[kind] >= most:
                        continue
                    kept[kind] += 1
                    facts = {"language": language, "source": "polyrefuse-answers", "refusal": kind[1]}
                    facts |= {"generator": generator, "written": written, "response": row["response"][:_LONGEST]}
                    yield _row(row["instruction"], row["instruction_en"], kind[0], facts)


def multijail_requests(clone: Clone) -> Iterator[Row]:
    """Harmful requests in ten languages, translated by native speakers; there are no harmless ones."""
    table = io.StringIO((clone.read("data/MultiJail.csv") or b"").decode("utf-8-sig"))
    for row in csv.DictReader(table):
        for language in ("en", "zh", "it", "vi", "ar", "ko", "th", "bn", "sw", "jv"):
            if row.get(language, "").strip():
                facts = {"language": language, "source": "multijail", "licence": "MIT"}
                yield _row(row[language], row["en"], "harmful", facts)


def _row(text: str, english: str, label: str, facts: Mapping[str, Any]) -> Row:
    """One row of a table; `prompt_key` is the same for translations of one request."""
    key = digest(normalise(english))
    content = json.dumps([text, facts.get("response"), facts["language"], facts.get("generator")])
    licence = "CC-BY-NC-4.0" if facts["source"] == "polyrefuse-harmless" else "Apache-2.0"
    kept = {name: value for name, value in facts.items() if value is not None}
    own = {"id": f"{facts['source']}-{facts['language']}-{digest(content)}", "prompt": text, "label": label}
    return {**own, "licence": licence, **kept, "prompt_key": key}


def write(path: Path, rows: Iterable[Row], seen: set[str]) -> None:
    """Write a table without requests that are in `seen` and without the second of two equal rows; say what is in it."""
    found: dict[str, Row] = {}
    left_out = 0
    for row in rows:
        if row["prompt_key"] in seen:
            left_out += 1
        else:
            found.setdefault(row["id"], row)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in found.values())
    counted = Counter((row["language"], row["label"], row.get("refusal", "")) for row in found.values())
    print(path.name, len(found), "rows,", left_out, "left out (in a table of --seen)")
    print("  " + ", ".join(f"{' '.join(filter(None, key))} {count}" for key, count in sorted(counted.items())))


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("polyrefuse", type=Path, help="clone of mainlp/Multilingual-Refusal")
    parser.add_argument("--multijail", type=Path, help="clone of DAMO-NLP-SG/multilingual-safety-for-LLMs")
    parser.add_argument("--seen", type=Path, nargs="*", default=[], help="tables whose prompts and goals are left out")
    parser.add_argument(
        "--most",
        type=int,
        default=250,
        help="requests of a language and label, and answers of a model, language, label and kind",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the tables")
    given = parser.parse_args()
    rows = [row for table in given.seen for row in load(table)]
    seen = {digest(normalise(text)) for row in rows for text in (row.prompt, row.tags.get("goal", "")) if text}
    given.out.mkdir(parents=True, exist_ok=True)
    clone = Clone(given.polyrefuse)
    write(given.out / "polyrefuse_requests.jsonl.gz", polyrefuse_requests(clone, given.most), seen)
    write(given.out / "polyrefuse_answers.jsonl.gz", polyrefuse_answers(clone, given.most), seen)
    lacking = clone.lacking
    if given.multijail:
        other = Clone(given.multijail)
        write(given.out / "multijail_requests.jsonl.gz", multijail_requests(other), seen)
        lacking += other.lacking
    print(len(lacking), "files are lacking:", ", ".join(lacking[:5]), "…" if len(lacking) > 5 else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
