"""Measure what a check costs on this machine, as ratios within one run.

Every figure is a ratio of two things measured in turn, so that it can be compared between machines; a check is measured
whole: fork, forward pass, read-out and score.
"""

from anydepth.bench.bench_record import BenchRow
from anydepth.bench.benchmark import FULL, QUICK, run

__all__ = ["FULL", "QUICK", "BenchRow", "run"]
