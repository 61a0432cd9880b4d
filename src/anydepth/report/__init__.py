"""Show people what evaluations found: one page, its figures and its tables."""

from anydepth.report.render import render, write
from anydepth.report.runs import Run, open_runs

__all__ = ["Run", "open_runs", "render", "write"]
