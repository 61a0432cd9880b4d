"""Measure which share of some answers is halted, source by source or category by category."""

from collections.abc import Sequence

from anydepth.intervals import Rate
from anydepth.probes.fitting.false_alarms import Direction
from anydepth.probes.fitting.measure import rows_by_answer, trails
from anydepth.probes.fitting.stretch_halts import stretch_halt


def rates_by(column: str, found: Sequence[Direction], splits: Sequence[str], label: str) -> dict[str, Rate]:
    """Value of `column` (`source` or `category`) -> rate of its answers, of `splits` and with one label.

    Answers of which the data says nothing (an empty value, or no such column) are left out.
    """
    halted: dict[str, list[bool]] = {}
    for each in found:
        if column not in each.checks.columns:
            continue
        answers = trails(each.checks, each.logits, splits, label)
        for rows, answer in zip(rows_by_answer(each.checks, splits, label), answers, strict=True):
            if group := str(each.checks[column][rows[0]]):
                halted.setdefault(group, []).append(stretch_halt(each.policy, answer).halted)
    return {group: Rate.of(sum(fell), len(fell)) for group, fell in sorted(halted.items())}
