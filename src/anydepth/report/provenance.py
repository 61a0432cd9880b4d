"""What a run was made with, as its manifest says it."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from anydepth.report.runs import Run

MISSING = "not recorded"
"""Stands for what a manifest does not say."""

_APART = ("data", "command", "suites")
"""Parts of a manifest that are shown in a form of their own."""

_ALWAYS = ("anydepth", "model", "probe", "options", "judge", "begun", "versions", "machine")


def provenance(run: Run) -> dict[str, Any]:
    """Everything that the manifest says, known to us or not.

    The label of the `run`, what was used and its value (`facts`), tables of `data` with rows and digest, `suites` with
    seconds and end, and the `command` that makes the run again.
    """
    told = dict.fromkeys(_ALWAYS, MISSING) | dict(run.manifest)
    facts = [fact for key, value in told.items() if key not in _APART for fact in _flat(key, value)]
    data, suites = _rows(run, "data"), _rows(run, "suites")
    return {
        "run": run.label,
        "facts": facts,
        "data": [(name, _text(each.get("rows")), _text(each.get("sha256"))) for name, each in data],
        "suites": [(name, _seconds(each.get("seconds")), _moment(each.get("finished"))) for name, each in suites],
        "command": _text(run.manifest.get("command")),
    }


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
        yield name, _value(value)


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
