"""Show the evidence for a probe's threshold."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from anydepth.cli.output import printable
from anydepth.detectors.drift_warning import DRIFT_COLUMNS, drift_rows
from anydepth.intervals import percent, percent_range

Rows = Iterable[tuple[str, object]]

_PLAIN: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "right": True}


def fact_table(rows: Rows) -> Table:
    """Names and values, one pair a line; pairs without a value are left out."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value not in (None, "", (), []):
            table.add_row(name, value if isinstance(value, Text) else Text(printable(str(value))))
    return table


def policy_text(policy: Mapping[str, Any] | None) -> str:
    """A policy's record as `ewma, alpha 0.5, threshold 0.71`."""
    if policy is None:
        return "none: the probe was not calibrated"
    options = [f"{name} {value:.6g}" for name, value in policy.items() if name != "name"]
    return ", ".join([policy["name"], *options])


def evidence_rows(found: Mapping[str, Any]) -> Rows:
    """The record of a calibration as pairs; what an older one lacks is left out."""
    confidence = percent(found.get("confidence", 0.95))
    yield "target", _percent(found.get("target"))
    yield "achieved", _share(found)
    if found.get("interval"):
        yield f"{confidence} interval", percent_range(found["interval"])
    yield f"{confidence} bound", _percent(found.get("upper_bound"))
    if other := found.get("other_half"):
        seen = f"{percent(other['rate'])} {percent_range(other['interval'])}"
        yield "on other prompts", f"{seen} ({other['halted']} of {other['answers']} benign answers)"
    yield "in words", found.get("note")
    yield "copies", f"{found['copies']} records, left out" if found.get("copies") else None
    same = found.get("same_prompt")
    yield "same prompt", f"{same} answers to the prompts of others, left out" if same else None
    yield "schedule", found.get("schedule")
    yield "data", found.get("data")
    if found.get("cascade"):
        yield from _cascade_rows(found["cascade"])


def _cascade_rows(found: Mapping[str, Any]) -> Rows:
    """The record of a calibrated cascade as pairs."""
    mode, low, high = found["second"]["mode"], found["low"], found["high"]
    yield "cascade", f"rethink ({mode}) where the probe scores {low:.6g} to {high:.6g}"
    yield "its policy", policy_text(found["policy"])
    yield "its rate", f"{_share(found)}, {percent(found['confidence'])} interval {percent_range(found['interval'])}"
    yield "its note", found["note"]
    checks = f"{found['second_checks']} of {found['checks']} checks"
    yield "rethink ran at", f"{percent(found['second_share'])} ({checks})"


def evidence_tables(found: Mapping[str, Any]) -> list[RenderableType]:
    """The rates by source and by depth, as far as the record has them."""
    tables: list[RenderableType] = []
    if found.get("per_source"):
        rows = [
            [name, str(rate["answers"]), str(rate["halted"]), percent(rate["rate"]), percent_range(rate["interval"])]
            for name, rate in found["per_source"].items()
        ]
        tables.append(text_table(["source", "answers", "halted", "rate", "interval"], rows, **_PLAIN))
    if found.get("per_depth"):
        rows = [
            [_depths(bucket["depths"]), *(str(bucket[key]) for key in ("answers", "halted", "checks", "above"))]
            for bucket in found["per_depth"]
        ]
        tables.append(text_table(["depth", "answers", "halted there", "checks", "above threshold"], rows, **_PLAIN))
    return tables


def drift_table(drift: Sequence[Mapping[str, Any]]) -> Table:
    """What a probe is worth on altered weights, from the records of its card."""
    return text_table(list(DRIFT_COLUMNS), drift_rows(drift), **_PLAIN)


def text_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: bool = False, **style: Any) -> Table:
    """A table of plain texts; with `right` all columns but the first are flush right. `style` is that of `Table`."""
    table = Table(**style)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if right and place else "left")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _share(found: Mapping[str, Any]) -> str | None:
    if found.get("achieved") is None:
        return None
    whole = f" ({found['halted']} of {found['answers']} benign answers)" if "halted" in found else ""
    return f"{percent(found['achieved'])}{whole}"


def _percent(share: float | None) -> str | None:
    return None if share is None else percent(share)


def _depths(depths: Sequence[int]) -> str:
    low, high = depths
    return str(low) if low == high else f"{low}-{high}"
