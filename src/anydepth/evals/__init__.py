"""Measure what a guard does: one suite per claim of the paper, records that resume, figures with intervals."""

from anydepth.evals.agreement import agreement
from anydepth.evals.figure import Chart, Figure, Summary
from anydepth.evals.judge import Judge, Judged, Judgement, open_judge
from anydepth.evals.run import Evaluation, evaluate
from anydepth.evals.suite import QUICK, SUITES, EvalOptions

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
