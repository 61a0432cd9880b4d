"""Write a probe's folder: the artefact, and a README that the Hugging Face hub shows as its model card."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from anydepth.atomic import write_whole
from anydepth.detectors import LinearProbe
from anydepth.detectors.card import ProbeCard, card_record
from anydepth.errors import ProbeError
from anydepth.intervals import percent, percent_range

ARTEFACT = "probe.safetensors"
README = "README.md"
_ARTEFACT_MARK = re.compile(r"<!-- artefact: (?P<digest>[0-9a-f]{16}) -->")
_BEGIN, _END = "<!-- calibration: begin -->", "<!-- calibration: end -->"


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
    """
    directory = Path(directory)
    probe.save(directory / ARTEFACT)
    _write(directory / README, readme(probe, figures, limits, command, licence=licence))
    return directory


def refresh(artefact: str | Path, probe: LinearProbe) -> bool:
    """Bring the calibration in the README beside `artefact` up to date; False if there is none to bring."""
    path = Path(artefact).with_name(README)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    except (OSError, UnicodeDecodeError) as error:
        raise ProbeError(f"cannot read {path}: {error}") from error
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        return False
    _write(path, before + _marked(probe) + after)
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
    try:
        text = Path(readme).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProbeError(f"cannot read {readme}: {error}") from error
    found = _ARTEFACT_MARK.search(text)
    return None if found is None else found["digest"] == _digest(probe)


def readme(
    probe: LinearProbe, figures: Mapping[str, Any], limits: Sequence[str], command: str, *, licence: str = "other"
) -> str:
    """The text of the README; see `write_folder`."""
    card = probe.card
    name = card.model.name
    parts = [
        "\n".join(["---", *_header(card, licence), "---"]),
        f"# Safety probe for {name}",
        f"A linear probe for [anydepth](https://arxiv.org/abs/2510.18081): while {name} answers, the probe reads its "
        f"hidden state at the Safety Tokens ({', '.join(f'`{read}`' for read in card.reads)}) at chosen depths of the "
        "answer and says whether the answer has turned harmful. It fits this model, its chat template and its weights "
        "only; anything else is refused when it is loaded.",
        _table(["", ""], _facts(card)),
        "## Use",
        _usage(name),
        "## Figures",
        *(_section(figures, 3) if figures else ["None were recorded."]),
        "## Calibration",
        _marked(probe),
        "## Training data",
        _sources(card),
        "## Where it does not hold",
        "\n".join(f"- {limit}" for limit in limits) or "This was not measured: rely on it nowhere else.",
        "## How it was made",
        f"```\n{command}\n```",
        _made(card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(card: ProbeCard, licence: str) -> Iterator[str]:
    """The YAML that the hub reads; every value is JSON, which is YAML too."""
    yield "library_name: anydepth"
    if _is_hub_id(card.model.name):
        yield f"base_model: {_quoted(card.model.name)}"
    yield f"license: {_quoted(licence)}"
    yield "tags:"
    yield from (f"  - {tag}" for tag in ("anydepth", "safety", "guardrail", "linear-probe"))
    hub = sorted({source["repo"] for source in card.sources if _is_hub_id(source.get("repo", ""))})
    if hub:
        yield "datasets:"
        yield from (f"  - {_quoted(name)}" for name in hub)
    if card.sources:
        yield "sources:"
    for source in card.sources:
        yield f"  - name: {_quoted(source.get('name', 'unknown'))}"
        yield f"    license: {_quoted(source.get('licence', 'unknown'))}"


def _is_hub_id(name: str) -> bool:
    owner, _, repo = name.partition("/")
    return bool(owner and repo) and "/" not in repo and not name.startswith((".", "~")) and "\\" not in name


def _quoted(value: Any) -> str:
    return json.dumps(str(value), ensure_ascii=False)


def _facts(card: ProbeCard) -> list[list[Any]]:
    model = card.model
    rows = [
        ["model", model.name + (f", revision `{model.revision}`" if model.revision else "")],
        [
            "weights",
            f"`{model.fingerprint}`" if model.fingerprint else "not known; shape and architecture are compared",
        ],
        ["size", f"{model.model_type}, {model.num_layers} layers of width {model.hidden_size}"],
        ["Safety Tokens", f"`{list(card.header_ids)}`"],
        ["read", ", ".join(f"`{read}`" for read in card.reads)],
        ["type of the weights at collection", card.dtype],
    ]
    return [row for row in rows if row[1]]


def _usage(model: str) -> str:
    return (
        "```python\n"
        "from anydepth import Guard\n\n"
        f'guard = Guard.from_pretrained({json.dumps(model)}, probe="{ARTEFACT}")\n'
        'answer = guard.generate("How do vaccines work?")\n'
        "print(answer.text, answer.finish_reason)\n"
        "```\n\n"
        "```\n"
        f'anydepth generate {model} "How do vaccines work?" --probe {ARTEFACT}\n'
        f"anydepth calibrate {ARTEFACT} --model {model} --benign traffic.jsonl\n"
        "```"
    )


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
            columns = list(dict.fromkeys(key for record in value for key in record))
            yield _table(columns, [[record.get(key) for key in columns] for record in value])


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


def _marked(probe: LinearProbe) -> str:
    """The part that every new calibration replaces, with a mark of the artefact that it belongs to."""
    return "\n\n".join([_BEGIN, f"<!-- artefact: {_digest(probe)} -->", *_calibration(probe.card), _END])


def _digest(probe: LinearProbe) -> str:
    """Digest of weight, bias and card, 16 hex digits."""
    card = json.dumps(card_record(probe.card), sort_keys=True, default=str)
    return hashlib.sha256(probe.weight.tobytes() + repr(probe.bias).encode() + card.encode()).hexdigest()[:16]


def _calibration(card: ProbeCard) -> Iterator[str]:
    """The policy and the evidence for its threshold; fields that an older card lacks are left out."""
    if card.policy is None:
        yield "The probe was not calibrated: the policy's own threshold holds, and no false-positive rate is known."
        return
    found = dict(card.calibration)
    options = ", ".join(f"{name} {_cell(value)}" for name, value in card.policy.items() if name != "name")
    rows: list[list[Any]] = [["policy", f"{card.policy['name']} ({options})"]]
    rows += [
        ["false positives asked for, of whole answers", _optional(found.get("target"))],
        ["false positives seen", _optional(found.get("achieved"))],
        [f"interval ({percent(found.get('confidence', 0.95))})", percent_range(found.get("interval"))],
        ["upper bound, one-sided", _optional(found.get("upper_bound"))],
        ["benign answers, of them halted", " / ".join(_cell(found[k]) for k in ("answers", "halted") if k in found)],
        ["schedule", found.get("schedule")],
        ["data", found.get("data")],
    ]
    yield _table(["", ""], [row for row in rows if row[1]])
    if found.get("note"):
        yield f"In words: {found['note']}."
    if found.get("per_source"):
        yield "False positives by source:"
        yield _table(["source", "rate"], [[name, rate] for name, rate in found["per_source"].items()])
    if found.get("per_depth"):
        yield "Where benign answers are halted:"
        columns = ["depth", "answers", "halted there first", "checks", "checks above the threshold"]
        yield _table(columns, [_bucket_row(bucket) for bucket in found["per_depth"]])


def _optional(share: float | None) -> str | None:
    return None if share is None else percent(share)


def _bucket_row(bucket: Mapping[str, Any]) -> list[Any]:
    low, high = bucket["depths"]
    return [
        str(low) if low == high else f"{low}-{high}",
        *(bucket[k] for k in ("answers", "halted", "checks", "above")),
    ]


def _sources(card: ProbeCard) -> str:
    if not card.sources:
        return "Not recorded."
    columns = list(dict.fromkeys(["name", "licence", *(key for source in card.sources for key in source)]))
    return _table(columns, [[source.get(key) for key in columns] for source in card.sources])


def _made(card: ProbeCard) -> str:
    facts = [card.created and f"made {card.created}", None if card.seed is None else f"seed {card.seed}"]
    facts += [f"{name} {version}" for name, version in card.versions.items()]
    text = ", ".join(fact for fact in facts if fact)
    return "\n\n".join(part for part in (text, card.notes) if part)


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


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text.encode("utf-8"))
    except OSError as error:
        raise ProbeError(f"cannot write {path}: {error.strerror or error}") from error
