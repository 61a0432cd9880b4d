"""Put the figures of a trained probe into words, for its model card."""

from collections.abc import Mapping
from typing import Any

from anydepth.intervals import percent
from anydepth.probes.fitting.added import DEEP
from anydepth.probes.fitting.calibrate import threshold_note
from anydepth.probes.fitting.train import Trained

ENOUGH = 0.95
"""Share of halted answers below which a held-out set is named as one that the probe misses."""


def figures_of(trained: Trained) -> dict[str, Any]:
    """The figures in the order of the card.

    First the pairs whose requests say nothing of the answers, then the others, each with what depth 0 alone says; then
    what is halted, at which prefills, false positives, groups, and sources that were left out.
    """
    figures = trained.figures
    crossed, pairs = figures["crossed"], figures["pairs"]
    plain = [name for name in pairs if name not in crossed]
    deep = {name: pairs[name][f"from_depth_{DEEP}"] for name in (*crossed, *plain)}
    sections = {
        "Answers under requests that say nothing of them": [_pair(name, pairs[name]) for name in crossed],
        "Answers under their own requests": [_pair(name, pairs[name]) for name in plain],
        f"From depth {DEEP} on": [_pair(name, found) for name, found in deep.items() if found is not None],
        "Harmful answers halted": figures["halted"],
        "Harmful answers forced as a prefill": figures["prefill"],
        "Harmless answers halted, threshold set on other prompts": figures["false_positives"],
        "By source": figures["groups"]["source"],
        "By category": figures["groups"]["category"],
        "Sources that a refit never saw": [
            {"source": name, **_apart(found)} for name, found in figures.get("leave_out", {}).items()
        ],
    }
    return {name: found for name, found in sections.items() if found}


def _pair(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the card: what the probe reaches, what depth 0 alone does, and the difference."""
    return {
        "pair": name,
        "AUROC": found["auroc"],
        "AUROC of the request alone": found["control"]["auroc"],
        "added": found["added"]["auroc"],
        "halted": found["halted"],
        "halted by the request alone": found["control"]["halted"],
        "added to that": found["added"]["halted"],
    }


def _apart(found: Mapping[str, Any]) -> dict[str, Any]:
    """A source's line of the card."""
    if found["auroc"] is None:
        return {"AUROC": None, "against": found["why"]}
    return {
        "AUROC": {"value": found["auroc"], "interval": found["interval"]},
        "harmful": found["harmful"],
        "benign": found["benign"],
        "against": found["against"],
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
        *(
            f"Of the harmful set “{name}” {percent(early['rate'])} is halted before its harmful stretch begins: "
            "that is no hit, but a false alarm."
            for name, found in trained.figures["halted"].items()
            if (early := found.get("halted_early")) and early["halted"]
        ),
    ]
    policy = trained.probe.policy
    if policy is not None and (note := threshold_note(policy)) is not None:
        limits.append(f"{note[0].upper()}{note[1:]}.")
    for name, found in trained.figures["false_positives"].items():
        if target is not None and found["rate"] > target:
            rate = percent(found["rate"])
            limits.append(f"With a threshold set on other prompts {rate} of “{name}” is halted, above the target.")
    limits += [
        f"On “{name}” the probe is not shown to tell more than the request alone does: the interval of what it adds to "
        "the AUROC reaches 0 or less."
        for name, found in trained.figures["pairs"].items()
        if found["added"]["auroc"]["interval"][0] <= 0
    ]
    return limits
