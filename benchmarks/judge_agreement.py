"""How far the local judges agree with labelled answers that they were not fitted on.

python benchmarks/judge_agreement.py --data-dir DIR -o benchmarks/judge-agreement.json
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src")]

from anydepth.conversations.corpora import load  # noqa: E402
from anydepth.conversations.dataset import Conversation  # noqa: E402
from anydepth.evals.judges.agreement import agreement  # noqa: E402
from anydepth.evals.judges.judge import open_judge  # noqa: E402


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()

    def tables(name: str) -> list[Conversation]:
        return load(name, data=arguments.data_dir)

    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for spec in ("refusal", "text"):
            judge = open_judge(spec, tables=tables, folder=Path(folder), seed=0)
            figures += [figure.record() for figure in agreement(judge, tables)]
    arguments.out.write_text(json.dumps({"figures": figures}, indent=1) + "\n")
    for figure in figures:
        print(figure["name"], figure["group"], figure["value"], figure["interval"], figure["answers"])


if __name__ == "__main__":
    main()
