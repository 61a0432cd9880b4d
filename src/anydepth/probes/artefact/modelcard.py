"""Write a probe's folder: the artefact, and a README that the Hugging Face hub shows as its model card."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from anydepth.atomic import write_whole
from anydepth.detectors import LinearProbe
from anydepth.detectors.card import card_record
from anydepth.detectors.drift_warning import DRIFT_COLUMNS, drift_rows
from anydepth.errors import ProbeError
from anydepth.extras import require
from anydepth.intervals import percent, percent_range

ARTEFACT = "probe.safetensors"
README = "README.md"
_ARTEFACT_MARK = re.compile(r"<!-- artefact: (?P<digest>[0-9a-f]{16}) -->")
_CALIBRATION = re.compile("<!-- calibration: begin -->.*?<!-- calibration: end -->", re.DOTALL)


def write_folder(
    directory: str | Path,
    probe: LinearProbe,
    figures: Mapping[str, Any],
    limits: Sequence[str],
    command: str,
    *,
    licence: str = "other",
) -> Path:
    """Write `probe.safetensors` and `README.md` into `directory`.

    Args:
        directory: Where; made if it is not there.
        probe: The probe. Its card says most of what the README says.
        figures: What was measured, JSON-ready: name -> number, `{"value", "interval"}`, a rate or an operating point as
            its `record()` is, a list of records (a table), or a mapping of such (a section of its own).
        limits: Where the probe does not hold, one sentence each.
        command: The command that made it.
        licence: Licence of the probe's weights, as the hub spells it; nobody but their owner can say it.

    Returns:
        The folder.

    Raises:
        ProbeError: It cannot be written.
        MissingExtra: huggingface_hub or Jinja is not installed.
    """
    directory = Path(directory)
    text = readme(probe, figures, limits, command, licence=licence)
    probe.save(directory / ARTEFACT)
    write_text(directory / README, text)
    return directory


def refresh(artefact: str | Path, probe: LinearProbe) -> bool:
    """Bring the calibration in the README beside `artefact` up to date; False if there is none to bring."""
    path = Path(artefact).with_name(README)
    if not path.exists():
        return False
    text = _read(path)
    old, new = _CALIBRATION.search(text), _CALIBRATION.search(readme(probe, {}, [], ""))
    if old is None or new is None:
        return False
    write_text(path, text[: old.start()] + new[0] + text[old.end() :])
    return True


def artefact_in(path: str | Path) -> Path:
    """The artefact that `path` names: the file itself, or `probe.safetensors` of a folder."""
    path = Path(path)
    return path / ARTEFACT if path.is_dir() else path


def describes(readme: str | Path, probe: LinearProbe) -> bool | None:
    """Whether the README at that path was written for just this probe; None if it does not say for which.

    Raises:
        ProbeError: It cannot be read.
    """
    found = _ARTEFACT_MARK.search(_read(Path(readme)))
    return None if found is None else found["digest"] == _digest(probe)


def readme(
    probe: LinearProbe, figures: Mapping[str, Any], limits: Sequence[str], command: str, *, licence: str = "other"
) -> str:
    """The text of the README; see `write_folder`."""
    require("jinja2", extra="fit")  # without it, the hub's library names its own way to install it
    hub = require("huggingface_hub", extra="fit")
    card, model = probe.card, probe.card.model
    data = hub.ModelCardData(
        library_name="anydepth",
        base_model=model.name if _is_hub_id(model.name) else None,
        license=licence,
        tags=["anydepth", "safety", "guardrail", "linear-probe"],
        datasets=sorted({source["repo"] for source in card.sources if _is_hub_id(source.get("repo", ""))}) or None,
        sources=[
            {"name": each.get("name", "unknown"), "license": each.get("licence", "unknown")} for each in card.sources
        ]
        or None,
    )
    facts = {"card": card, "model": model, "found": card.calibration, "digest": _digest(probe)}
    facts |= {"drift": _table(DRIFT_COLUMNS, drift_rows(card.drift))}
    facts |= {"figures": "\n\n".join(_section(figures, 3)), "limits": limits, "command": command}
    tools = {"cell": _cell, "records": _records, "json": json.dumps, "percent": percent, "percent_range": percent_range}
    template = (resources.files("anydepth") / "data" / "modelcard.md.j2").read_text(encoding="utf-8")
    return hub.ModelCard.from_template(data, template_str=template, **facts, **tools).content.rstrip() + "\n"


def _is_hub_id(name: str) -> bool:
    owner, _, repo = name.partition("/")
    return bool(owner and repo) and "/" not in repo and not name.startswith((".", "~")) and "\\" not in name


def _section(figures: Mapping[str, Any], level: int) -> Iterator[str]:
    """A table of the plain figures, then a section for each of the others."""
    plain = {name: value for name, value in figures.items() if _is_cell(value)}
    if plain:
        more = list(dict.fromkeys(key for value in plain.values() for key in _beside(value)))
        rows = [[name, value, *(_beside(value).get(key, "") for key in more)] for name, value in plain.items()]
        yield _table(["", "value", *(key.replace("_", " ") for key in more)], rows)
    for name, value in figures.items():
        if name in plain:
            continue
        yield f"{'#' * min(level, 6)} {name}"
        if isinstance(value, Mapping):
            yield from _section(value, level + 1)
        else:
            yield _records(value)


def _is_cell(value: Any) -> bool:
    if isinstance(value, Mapping):
        return _figure(value) is not None
    return not (isinstance(value, list | tuple) and value and all(isinstance(each, Mapping) for each in value))


def _figure(value: Mapping[str, Any]) -> str | None:
    """The name of the one figure that `value` is about, with its `interval`, or None."""
    named = [key for key in ("rate", "value") if key in value]
    if not named and "interval" in value and len(value) == 2:  # such as {"auroc", "interval"}
        named = [key for key in value if key != "interval"]
    return named[0] if named else None


def _beside(value: Any) -> dict[str, Any]:
    """What a figure says beside itself: the depths of halting of a rate, say."""
    if not isinstance(value, Mapping):
        return {}
    shown = {_figure(value), "interval", "answers", "halted", "per_source"}
    return {key: each for key, each in value.items() if key not in shown}


def _digest(probe: LinearProbe) -> str:
    """Digest of weight, trained Safety Tokens, bias and card, 16 hex digits."""
    card = json.dumps(card_record(probe.card), sort_keys=True, default=str)
    return hashlib.sha256(probe.numbers + repr(probe.bias).encode() + card.encode()).hexdigest()[:16]


def _records(records: Sequence[Mapping[str, Any]], first: Sequence[str] = ()) -> str:
    """A table with a column for each key."""
    columns = list(dict.fromkeys([*first, *(key for record in records for key in record)]))
    return _table(columns, [[record.get(key) for key in columns] for record in records])


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        figure, interval = _figure(value), value.get("interval")
        if figure == "rate":
            whole = f", {value['halted']} of {value['answers']}" if {"halted", "answers"} <= value.keys() else ""
            return f"{percent(value['rate'])} {percent_range(interval)}{whole}"
        if figure is not None:
            return _cell(value[figure]) + (f" [{_cell(interval[0])}, {_cell(interval[1])}]" if interval else "")
        return ", ".join(f"{key} {_cell(each)}" for key, each in value.items() if each is not None) or "–"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    return " ".join(str(value).split()).replace("|", "\\|")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProbeError(f"cannot read {path}: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file of a probe's folder whole or not at all; ProbeError if it cannot be written."""
    try:
        write_whole(path, text.encode("utf-8"))
    except OSError as error:
        raise ProbeError(f"cannot write {path}: {error.strerror or error}") from error
