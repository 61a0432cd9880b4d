"""Measure which share of benign answers is halted by a threshold that was set on others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anydepth.intervals import Rate, percent
from anydepth.policy import Policy
from anydepth.probes.fitting.calibrate import Calibration, first_halt
from anydepth.probes.fitting.fit import Fitted
from anydepth.probes.fitting.measure import thresholds, trails
from anydepth.probes.recipe.choices import CHOSEN, REPORTED
from anydepth.probes.states.store import Checks


@dataclass(frozen=True, slots=True)
class Direction:
    """A policy whose threshold was set on one half of the prompts, and the checks of the other half.

    Attributes:
        policy: The policy.
        checks: Held-out checks, none of which its threshold was set on.
        logits: Their logits, float `[checks]`.
    """

    policy: Policy
    checks: Checks
    logits: np.ndarray


def directions(
    halves: Sequence[Checks], fitted: Fitted, calibration: Calibration, splits: Sequence[str]
) -> list[Direction]:
    """The thresholds to measure, each with the half of the prompts that it was not set on.

    For the contract `rate`, whose threshold was set on both halves, one is set anew on each half, and measured on the
    other. For `guarantee` it was set on the half that is reported on (`choices.REPORTED`): it is measured as it is.

    Args:
        halves: The held-out checks of both halves, in the order of `choices.CHOSEN` and `choices.REPORTED`.
        fitted: The probe.
        calibration: Policy, target and contract of the artefact.
        splits: The sets that thresholds are set on.
    """
    logits = [fitted.logits(checks.states) for checks in halves]
    if calibration.guarantee:
        return [Direction(calibration.policy, halves[CHOSEN], logits[CHOSEN])]
    found = []
    for one, other in ((CHOSEN, REPORTED), (REPORTED, CHOSEN)):
        anew = thresholds(
            halves[one], logits[one], calibration.policy, splits, target=calibration.target, data="one half"
        )
        found.append(Direction(anew.policy, halves[other], logits[other]))
    return found


def halted_elsewhere(found: Sequence[Direction], splits: Sequence[str]) -> Rate:
    """Share of the benign answers of `splits` that is halted by thresholds that were set on other prompts.

    Unlike the rate on the answers of the calibration itself, which is the target by construction, this says what to
    expect of other prompts.
    """
    halted = [
        first_halt(each.policy, trail.depths, trail.scores) is not None
        for each in found
        for trail in trails(each.checks, each.logits, splits, "benign")
    ]
    return Rate.of(sum(halted), len(halted))


def unused_note(rate: Rate, target: float) -> str | None:
    """What to know where less than half of the target is used on other prompts, as one sentence; None elsewhere."""
    if rate.rate >= target / 2:
        return None
    return (
        f"on prompts that the threshold was not set on, {percent(rate.rate)} of the benign answers is halted, which "
        f"leaves more than half of the target of {percent(target)} unused: a lower threshold would halt more harmful "
        "answers"
    )


def other_half(found: Sequence[Direction], splits: Sequence[str], calibration: Calibration) -> dict[str, Any]:
    """What a card's `calibration` says beside the calibration itself, JSON-ready.

    `contract`, the rate on the `other_half` of the prompts with its interval, and `note`, which gets a second sentence
    where half of the target is left unused there.
    """
    rate = halted_elsewhere(found, splits)
    notes = (calibration.note, unused_note(rate, calibration.target))
    return {
        "contract": "guarantee" if calibration.guarantee else "rate",
        "other_half": rate.record(),
        "note": ". ".join(
            note if not place else note[0].upper() + note[1:] for place, note in enumerate(notes) if note
        ),
    }
