"""Measure which share of some answers is halted, source by source or category by category."""

from collections.abc import Sequence

import numpy as np

from anydepth.intervals import Rate
from anydepth.probes.fitting.calibrate import first_halt
from anydepth.probes.fitting.false_alarms import Direction
from anydepth.probes.fitting.measure import rows_by_answer


def rates_by(column: str, found: Sequence[Direction], splits: Sequence[str], label: str) -> dict[str, Rate]:
    """Value of `column` (`source` or `category`) -> rate of its answers, of `splits` and with one label.

    Answers of which the data says nothing (an empty value, or no such column) are left out.
    """
    halted: dict[str, list[bool]] = {}
    for each in found:
        if column not in each.checks.columns:
            continue
        scores = np.exp(-np.logaddexp(0.0, -each.logits.astype(np.float64)))
        for rows in rows_by_answer(each.checks, splits, label):
            if group := str(each.checks[column][rows[0]]):
                fell = first_halt(each.policy, scores[rows].tolist()) is not None
                halted.setdefault(group, []).append(fell)
    return {group: Rate.of(sum(fell), len(fell)) for group, fell in sorted(halted.items())}
