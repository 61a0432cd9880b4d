"""Put together what is reported of a probe on the held-out answers that no choice was made on."""

from collections.abc import Sequence
from typing import Any

from anydepth.probes.fitting.added import pair_report
from anydepth.probes.fitting.calibrate import Calibration
from anydepth.probes.fitting.false_alarms import Direction, directions, halted_elsewhere, other_half
from anydepth.probes.fitting.fit import Fitted
from anydepth.probes.fitting.groups import rates_by
from anydepth.probes.fitting.measure import table
from anydepth.probes.fitting.request_control import RequestControl
from anydepth.probes.recipe.choices import REPORTED, Choices
from anydepth.probes.states.store import Checks


def held_out_figures(
    halves: Sequence[Checks], fitted: Fitted, calibration: Calibration, choices: Choices, control: RequestControl
) -> dict[str, Any]:
    """The figures of a probe, JSON-ready.

    Args:
        halves: The held-out checks of both halves of the prompts, in the order of `choices.CHOSEN` and `REPORTED`.
        fitted: The probe.
        calibration: Its policy with the threshold.
        choices: What is to be measured.
        control: What the request alone says of the answers.

    Returns:
        `pairs`, each pair with its control (`pair_report`); `control`, its reads and threshold; `crossed`, the names of
        those pairs whose requests say nothing of the answers; `separation`, `halted` and `prefill` (`measure.table`);
        `false_positives` by set; `calibration`, what was seen on the other half; `groups`, rates by source and by
        category.
    """
    reported, policy = halves[REPORTED], calibration.policy
    logits = fitted.logits(reported.states)
    apart = directions(halves, fitted, calibration, choices.benign)
    benign = dict.fromkeys(name for pair in choices.measured for name in pair.benign)
    harmful = dict.fromkeys(name for pair in choices.measured for name in pair.harmful)
    sides = [(name, "harmful", [Direction(policy, reported, logits)]) for name in harmful]
    sides += [(name, "benign", apart) for name in benign]
    return {
        "pairs": {pair.name: pair_report(reported, logits, pair, policy, control) for pair in choices.measured},
        "control": control.record(),
        "crossed": [pair.name for pair in choices.measured if pair.name in choices.crossed],
        **table(reported, fitted, choices.measured, policy),
        "false_positives": {name: halted_elsewhere(apart, (name,)).record() for name in benign},
        "calibration": other_half(apart, choices.benign, calibration),
        "groups": {column: _groups(column, sides) for column in ("source", "category")},
    }


def _groups(column: str, sides: Sequence[tuple[str, str, Sequence[Direction]]]) -> list[dict[str, Any]]:
    """A record for each group of each set: `set`, `label`, the group, and the rate at which its answers are halted."""
    return [
        {"set": name, "label": label, column: group, "halted": rate.record()}
        for name, label, found in sides
        for group, rate in rates_by(column, found, (name,), label).items()
    ]
