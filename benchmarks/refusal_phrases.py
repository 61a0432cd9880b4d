"""Say which refusals in each language the phrases recognise, and which other answers they take for one.

    python benchmarks/refusal_phrases.py DIR/languages -o FILE

The table is one of `benchmarks/language_data.py`. Phrases may be chosen on the answers to the requests of half 0 of the
prompts alone; half 1 is for the report.
"""

import argparse
import json
import sys
from pathlib import Path

from anydepth.conversations.corpora import load
from anydepth.evals.suites.languages_figures import refusal_figures
from anydepth.probes.recipe.pairs import half


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tables", type=Path, help="folder of the tables")
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSON file")
    given = parser.parse_args()
    rows = [row for row in load(given.tables) if row.response]
    found = {}
    for number, name in enumerate(("chosen on", "reported on")):
        mask = half([row.prompt_key for row in rows], number)
        own = [row for row, kept in zip(rows, mask, strict=True) if kept]
        found[name] = [figure.record() for figure in refusal_figures(own)]
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
