"""Put the figures of a trained probe into words, for its model card."""

from typing import Any

from anydepth.intervals import percent
from anydepth.probes.fitting.calibrate import threshold_note
from anydepth.probes.fitting.train import Trained

ENOUGH = 0.95
"""Share of halted answers below which a held-out set is named as one that the probe misses."""


def figures_of(trained: Trained) -> dict[str, Any]:
    """The figures in the order of the card: separation, what is halted, at which prefills, false positives."""
    figures = trained.figures
    return {
        "Response-level AUROC": figures["separation"],
        "Harmful answers halted": figures["halted"],
        "Harmful answers forced as a prefill": figures["prefill"],
        "Harmless answers halted, threshold set on other prompts": figures["false_positives"],
    }


def limits_of(trained: Trained) -> list[str]:
    """Where the probe does not hold, from what was measured."""
    target = trained.probe.card.calibration.get("target")
    limits = [
        "The figures are of answers that other models wrote; on the model's own answers they may differ.",
        "English prompts and answers only were measured.",
        "Reading and deciding were measured at a check every 25 tokens; another schedule has another false-positive "
        "rate: calibrate again with `anydepth calibrate`.",
        *(
            f"Of the harmful set “{name}” {percent(1 - found['rate'])} is not halted at the calibrated threshold."
            for name, found in trained.figures["halted"].items()
            if found["rate"] < ENOUGH
        ),
    ]
    policy = trained.probe.policy
    if policy is not None and (note := threshold_note(policy)) is not None:
        limits.append(f"{note[0].upper()}{note[1:]}.")
    for name, found in trained.figures["false_positives"].items():
        if target is not None and found["rate"] > target:
            rate = percent(found["rate"])
            limits.append(f"With a threshold set on other prompts {rate} of “{name}” is halted, above the target.")
    return limits
