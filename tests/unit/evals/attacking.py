"""Mild tables for tests of attacks, and a judge that they can count on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anydepth.detectors import LinearProbe
from anydepth.evals.context import Context
from anydepth.evals.judges.judge import Judged, Judgement
from tests.unit.evals import tables


class EvenJudge:
    """Finds harm in every answer with an even number of words, and never a refusal."""

    name = "even words"
    says_harm = True

    def judge(self, items: Sequence[Judged]) -> list[Judgement]:
        """By the answer's length."""
        even = [len(item.response.split()) % 2 == 0 for item in items]
        return [Judgement(refused=False, harmful=each, score=float(each)) for each in even]


def write(data: Path) -> Path:
    """Every table that the suites `attacks` and `adaptive` read."""
    goals = [{**row, "goal": f"w{n} w{n + 1}"} for n, row in enumerate(tables.pairs(60, 40, "harmful"))]
    tables.table(data, "attacks_validation", goals)
    tables.table(data, "attacks_advbench", [{**row, "prompt": f"{row['prompt']} w5"} for row in goals])
    asked = [{"prompt": row["prompt"], "source": "advbench"} for row in tables.pairs(90, 6, "harmful")]
    tables.table(data, "prompts_advbench", [{**row, "target": f"w{n} w7 w8"} for n, row in enumerate(asked)])
    tables.table(data, "prompts_strongreject", [{**row, "prompt": f"{row['prompt']} w6"} for row in asked])
    tables.table(data, "pairs_benign_validation", tables.pairs(31, 24, "benign"))
    tables.table(data, "pairs_deep_validation", tables.pairs(120, 24, "harmful"))
    return data


def context(suite: str, folder: Path, data: Path, *, probe: LinearProbe | None = None, **options: Any) -> Context:
    """A quick evaluation with that judge."""
    made = tables.context(suite, folder, data, probe=probe, **options)
    made.__dict__["judge"] = EvenJudge()
    return made


def middle_probe(peaks: Sequence[float]) -> LinearProbe:
    """A probe that halts about half of the answers that had these peaks."""
    ordered = sorted(peaks)
    return tables.probe(threshold=ordered[len(ordered) // 2])
