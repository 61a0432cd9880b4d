"""What a run was made with, as its manifest says it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from anydepth.report.runs import Run

MISSING = "not recorded"
"""Stands for what a manifest does not say."""

_APART = ("data", "command", "suites")
"""Parts of a manifest that are shown in a form of their own."""

_ALWAYS = ("anydepth", "model", "probe", "options", "judge", "begun", "versions", "machine")


@dataclass(frozen=True, slots=True)
class Provenance:
    """A run's manifest, to be read.

    Attributes:
        run: Label of the run.
        facts: What was used and its value.
        data: Tables with rows and digest.
        suites: Suites with seconds and end.
        command: The line that makes the run again.
    """

    run: str
    facts: tuple[tuple[str, str], ...]
    data: tuple[tuple[str, str, str], ...]
    suites: tuple[tuple[str, str, str], ...]
    command: str


def provenance(run: Run) -> Provenance:
    """Everything that the manifest says, known to us or not."""
    facts = [fact for key in _ALWAYS for fact in _flat(key, run.manifest.get(key, MISSING))]
    others = [key for key in run.manifest if key not in (*_ALWAYS, *_APART)]
    facts += [fact for key in others for fact in _flat(key, run.manifest[key])]
    return Provenance(
        run.label,
        tuple(facts),
        tuple((name, _text(table.get("rows")), _text(table.get("sha256"))) for name, table in _rows(run, "data")),
        tuple(
            (name, _seconds(done.get("seconds")), _moment(done.get("finished"))) for name, done in _rows(run, "suites")
        ),
        _text(run.manifest.get("command")),
    )


def headline(run: Run) -> tuple[tuple[str, str], ...]:
    """The few facts that stand at the top of the page."""
    quick = run.fact("options", "quick")
    sample = MISSING if quick is None else "quick: small samples" if quick else "full"
    limit = run.fact("options", "limit")
    return (
        ("Model", _text(run.model)),
        ("Probe", _probe(run)),
        ("Measured", _moment(run.fact("begun"), hours=False)),
        ("Sample", sample + (f", {limit} answers a suite at most" if limit else "")),
        ("Judge", _text(run.fact("judge"))),
        ("anydepth", _text(run.fact("anydepth"))),
    )


def _probe(run: Run) -> str:
    if "probe" in run.manifest and run.manifest["probe"] is None:
        return "none"
    probe = run.fact("probe")
    if not isinstance(probe, Mapping):
        return _text(probe)
    given = {True: "given", False: "shipped"}.get(probe.get("given"))  # pyright: ignore[reportArgumentType]
    parts = [probe.get("name"), given, f"reads {_text(probe['reads'])}" if probe.get("reads") else None]
    return ", ".join(map(str, filter(None, parts))) or MISSING


def _rows(run: Run, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    table = run.manifest.get(key)
    for name, facts in table.items() if isinstance(table, Mapping) else ():
        yield str(name), facts if isinstance(facts, Mapping) else {}


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(f"{name} · {key}", inner)
    else:
        yield name, MISSING if value == MISSING else _value(value)


def _value(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(_value, value)) if isinstance(value, list) else str(value)


def _text(value: Any) -> str:
    return MISSING if value is None else _value(value)


def _seconds(value: Any) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return MISSING
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{value:.1f} s"


def _moment(value: Any, *, hours: bool = True) -> str:
    """A moment as people write it; as it stands, if it is none."""
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return _text(value)
    day = f"{moment.day} {moment:%B %Y}"
    return f"{day}, {moment:%H:%M}" + (f" {moment:%Z}" if moment.tzinfo else "") if hours else day
