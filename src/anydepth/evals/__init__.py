"""Measure what a guard does: one suite per claim of the paper, records that resume, figures with intervals."""

from anydepth.evals.eval_options import EvalOptions
from anydepth.evals.evaluation import Evaluation, evaluate
from anydepth.evals.figure import Chart, Figure, Summary
from anydepth.evals.judges.agreement import agreement
from anydepth.evals.judges.judge import Judge, Judged, Judgement
from anydepth.evals.judges.open import open_judge
from anydepth.evals.suite import QUICK, SUITES

__all__ = [
    "QUICK",
    "SUITES",
    "Chart",
    "EvalOptions",
    "Evaluation",
    "Figure",
    "Judge",
    "Judged",
    "Judgement",
    "Summary",
    "agreement",
    "evaluate",
    "open_judge",
]
