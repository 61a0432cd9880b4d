"""Say what a probe is worth on weights that are others than those that it was fitted on."""

from collections.abc import Mapping, Sequence
from typing import Any

from anydepth.backends.altered_weights import ADAPTER, QUANTISED, Alteration
from anydepth.detectors.card import ProbeCard

REMEDY = "measure it with `anydepth probe drift`, or fit a probe on these weights with `anydepth fit`"


def drift_warning(card: ProbeCard, found: Sequence[Alteration]) -> str | None:
    """What to tell whoever binds a probe to weights that are altered in these ways; None if it was fitted on them.

    The measured loss is that of the probe's card (`ProbeCard.drift`). Where there is none of just these weights, that
    of others of the kind is told, and of these the one with the most harmful answers lost. Weights whose width is not
    known are of the kind of what the same library made.
    """
    others = [each for each in found if not _fitted_on(card, each)]
    if not others:
        return _lacking(card, found)
    weights = Alteration.joined(others)
    what = f"the probe was fitted on {_weights(card)}, the model's weights are altered: {weights}"
    if (exact := next((each for each in card.drift if each["weights"] == str(weights)), None)) is not None:
        return f"{what}. Measured: {measured(exact)}"
    if alike := [each for each in card.drift if _alike(each, weights)]:
        worst = min(alike, key=lambda each: each["sides"]["harmful"]["difference"])
        return f"{what}. Not measured for these; for {worst['weights']}: {measured(worst)}. To be sure, {REMEDY}"
    return f"{what}. What it is worth there was not measured: {REMEDY}"


def measured(record: Mapping[str, Any]) -> str:
    """The loss that a drift record has, in a sentence."""
    harmful, harmless = _sides(record)
    changed = record.get("verdicts_changed")
    return (
        f"of {harmful['answers']} harmful answers {harmful['halted']} were halted instead of {harmful['before']} "
        f"({100 * harmful['difference']:+.0f} points, 95 % interval {_ends(harmful)[1:-1]}), "
        f"of {harmless['answers']} harmless ones {harmless['halted']} instead of {harmless['before']}"
        + ("" if changed is None else f"; {changed['halted']} of {changed['answers']} verdicts changed")
    )


DRIFT_COLUMNS = ("weights", "harmful halted", "harmless halted", "harmful, points", "score moved, mean (most)")
"""Heads of the columns of `drift_rows`."""


def drift_rows(drift: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The drift records of a card as rows of a table."""
    return [
        [
            str(each["weights"]),
            *(f"{side['halted']} of {side['answers']} (was {side['before']})" for side in _sides(each)),
            f"{100 * each['sides']['harmful']['difference']:+.0f} {_ends(each['sides']['harmful'])}",
            "{mean:.3f} ({largest:.2f})".format(**each["score_difference"]),
        ]
        for each in drift
    ]


def _sides(record: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return record["sides"]["harmful"], record["sides"]["benign"]


def _ends(side: Mapping[str, Any]) -> str:
    low, high = (f"{100 * end:+.0f}" for end in side["interval"])
    return f"({low} to {high})"


def _alike(record: Mapping[str, Any], weights: Alteration) -> bool:
    return record["kind"] == weights.kind or (weights.kind == QUANTISED and f"({weights.how}" in record["weights"])


def _fitted_on(card: ProbeCard, found: Alteration) -> bool:
    if found.kind == ADAPTER:
        return found.how in (card.adapter or "")
    return _altered(card) in (str(found), found.how)  # cards of before have the method alone


def _altered(card: ProbeCard) -> str:
    return (card.dtype or "").partition(", ")[2]


def _lacking(card: ProbeCard, found: Sequence[Alteration]) -> str | None:
    """What to tell of a probe that was fitted on altered weights, if the model's are not; else None."""
    altered = _altered(card)
    if not altered or any(altered in (str(each), each.how) for each in found):
        return None
    return (
        f"the probe was fitted on {_weights(card)}, the model's weights are not {altered}. What it is worth there "
        f"was not measured: {REMEDY}"
    )


def _weights(card: ProbeCard) -> str:
    """The weights that the probe was fitted on, in words."""
    known = [each for each in (card.dtype, card.adapter and f"the adapter {card.adapter}") if each]
    return " with ".join(known) or "those of the checkpoint"
