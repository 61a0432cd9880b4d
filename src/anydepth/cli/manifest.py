"""Say what decides the records of a scan, so that going on with something else is refused."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anydepth.cli.options import GuardOptions, ModelOptions
from anydepth.detectors import LinearProbe
from anydepth.errors import ConfigError
from anydepth.policy import policy_record

if TYPE_CHECKING:
    from anydepth.guard import Guard

Settings = Mapping[str, Any]

_NO_VERDICT = ("device", "engine", "engine_args", "probe", "ride")
"""Options that decide no verdict: where and how the model runs; and the place of the probe, whose weights do."""


def asked_settings(model: ModelOptions, guard: GuardOptions) -> Settings:
    """What the options say, by name: known before the model is loaded."""
    found = {**asdict(model), **asdict(guard)}
    found["template_kwargs"] = found["template_kwargs"] or None  # as in manifests of before there were any
    if found["external"] is None:
        del found["external"]  # the same
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


def _digest_of_probe(probe: LinearProbe) -> str:
    reads = " ".join(map(str, probe.reads))
    return hashlib.sha256(probe.numbers + f"{probe.bias!r} {reads}".encode()).hexdigest()[:16]


def _digest_of_files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(path.name.encode() + path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from error
    return digest.hexdigest()[:16]
