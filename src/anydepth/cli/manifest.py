"""Say what decides the records of a scan, so that going on with something else is refused."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anydepth.cli.options import GuardOptions, ModelOptions
from anydepth.detectors import LinearProbe
from anydepth.errors import ConfigError
from anydepth.files import read_json, read_text, write_whole
from anydepth.policy import policy_record

if TYPE_CHECKING:
    from anydepth.guard import Guard

Settings = Mapping[str, Any]

_NO_VERDICT = ("device", "engine", "engine_args", "probe")
"""Options that decide no verdict: where the model runs; and the place of the probe, whose weights do."""


def asked_settings(model: ModelOptions, guard: GuardOptions) -> Settings:
    """What the options say, by name: known before the model is loaded."""
    found = {**asdict(model), **asdict(guard)}
    found["template_kwargs"] = found["template_kwargs"] or None  # as in manifests of before there were any
    if model.adapter is not None and Path(model.adapter).is_dir():
        found["adapter"] = _digest_of_files(sorted(Path(model.adapter).glob("adapter_*")))
    return {
        name: value if isinstance(value, int | float | bool) else value and str(value)
        for name, value in found.items()
        if name not in _NO_VERDICT
    }


def loaded_settings(guard: "Guard") -> Settings:
    """What the loaded model and its guard are, by name: a folder may hold another model today."""
    return {
        "fingerprint": guard.backend.identity.fingerprint,
        "template_digest": guard.template.digest,
        "rule": policy_record(guard.policy),
        "schedule": str(guard.schedule),
        "probe": _digest_of_probe(guard.detector) if isinstance(guard.detector, LinearProbe) else None,
    }


def digest_of(settings: Settings) -> str:
    """A short digest of settings, 16 hex digits."""
    return hashlib.sha256(_text(settings).encode()).hexdigest()[:16]


def check_manifest(output: Path, now: Settings, *, begun: bool) -> None:
    """Compare settings with those in the manifest beside `output`, if there is one.

    Args:
        output: The file of records.
        now: The settings of this run, or some of them.
        begun: Whether `output` holds records; a manifest that was left without them may say anything.

    Raises:
        ConfigError: `output` was begun with another model or guard, which the message names with both values; or what
            is beside it is no manifest.
    """
    path = _path(output)
    if not path.exists():
        return
    before = read_json(path, "the manifest of a scan")
    if "model" not in before:
        raise ConfigError(f"{path} is not the manifest of a scan; remove it or give another -o")
    for name, value in json.loads(_text(now)).items() if begun else ():
        if before.get(name) != value:
            raise ConfigError(
                f"{output} was begun with {name} {before.get(name)!r}, now it is {value!r}; give another -o, or "
                "the options it was begun with"
            )


def write_manifest(output: Path, settings: Settings) -> None:
    """Write the manifest of `output` unless it is there already; ConfigError if it cannot be written."""
    path, text = _path(output), json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    if not path.exists() or read_text(path) != text:
        write_whole(path, text)


def _path(output: Path) -> Path:
    return output.with_name(f"{output.name}.run.json")


def _text(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)


def _digest_of_probe(probe: LinearProbe) -> str:
    reads = " ".join(map(str, probe.reads))
    return hashlib.sha256(probe.weight.tobytes() + f"{probe.bias!r} {reads}".encode()).hexdigest()[:16]


def _digest_of_files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(path.name.encode() + path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from error
    return digest.hexdigest()[:16]
