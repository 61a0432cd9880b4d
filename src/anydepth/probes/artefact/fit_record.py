"""Keep a record of a fit beside its probe: all figures and candidates, and which answers it has seen."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anydepth.errors import ProbeError
from anydepth.probes.artefact.modelcard import ARTEFACT, README, write_text

NAME = "fit.json"
_SEEN = "seen"


def write_fit_record(folder: Path, record: Mapping[str, Any], seen: Mapping[str, set[str]]) -> None:
    """Write `record` into the folder of a probe, whole or not at all.

    Args:
        folder: The probe's folder.
        record: Figures, trials and what was left out, JSON-ready.
        seen: What answers were used for (`trained`, `chosen`) -> their keys (`splits.Text.key`).

    Raises:
        ProbeError: It cannot be written, or holds a number that is not finite.
    """
    whole = {**record, _SEEN: {use: sorted(keys) for use, keys in seen.items()}}
    try:
        text = json.dumps(whole, indent=2, allow_nan=False)
    except ValueError as error:
        raise ProbeError(f"the figures of the fit cannot be stored as JSON: {error}") from error
    write_text(folder / NAME, text + "\n")


def forget(folder: Path) -> None:
    """Remove what describes the probe that is in `folder` so far: its model card and the record of its fit.

    Raises:
        ProbeError: They cannot be removed.
    """
    for name in (README, NAME):
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise ProbeError(f"cannot remove {folder / name}: {error.strerror or error}") from error


def answers_seen(artefact: Path) -> dict[str, frozenset[str]]:
    """What answers the probe at `artefact` was made with -> their keys; empty if no record of its fit is beside it.

    Raises:
        ProbeError: The record cannot be read.
    """
    path = artefact.with_name(NAME)
    if artefact.name != ARTEFACT or not path.is_file():  # of another file nothing says that it belongs to it
        return {}
    try:
        seen = json.loads(path.read_text(encoding="utf-8")).get(_SEEN, {})
        return {str(use): frozenset(keys) for use, keys in seen.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ProbeError(f"{path} is no record of a fit ({error}); remove it, or fit the probe again") from error
