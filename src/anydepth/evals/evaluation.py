"""Run suites into a folder: manifest, records, summary; a killed run goes on."""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anydepth.backends.altered_weights import adapter_digest
from anydepth.config import GuardConfig
from anydepth.detectors import LinearProbe, find_shipped
from anydepth.errors import ConfigError, StoreError
from anydepth.evals.context import Context, probe_digest
from anydepth.evals.eval_options import EvalOptions
from anydepth.evals.figure import Summary
from anydepth.evals.suite import SUITES, load_suite
from anydepth.evals.suite_options import check_settings
from anydepth.files import public_name, read_json, write_whole
from anydepth.journal import settings_before
from anydepth.locks import hold
from anydepth.probes.states.manifest import dtype_of, package_versions
from anydepth.types import Progress

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend

MANIFEST, SUMMARY = "manifest.json", "summary.json"
_FIXED = ("model", "probe", "guard", "options", "judge")
_PACKAGES = ("anydepth", "numpy", "scikit-learn", "torch", "transformers", "peft", "lm_eval")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What to measure, and into which folder.

    Attributes:
        backend: The model.
        folder: Where records, texts, summary and manifest go.
        options: Data, seed, sizes, arms and settings of the suites.
        judge: Which judge decides; see `open_judge`.
        probe: The probe to use; by default the one shipped for the model.
        config: Schedule and policy of the guard.
        command: The command line, for the manifest.
    """

    backend: "TransformersBackend"
    folder: Path
    options: EvalOptions = field(default_factory=EvalOptions)
    judge: str = "text"
    probe: LinearProbe | None = None
    config: GuardConfig = field(default_factory=GuardConfig)
    command: str = ""


def evaluate(evaluation: Evaluation, suites: Sequence[str], told: Progress) -> dict[str, Summary]:
    """Run the suites, one after the other; what an earlier run of the same evaluation finished stays.

    Each suite's summary is written as soon as it is there. Records are made once: after a kill the same call goes on
    where it stopped.

    Raises:
        ConfigError: A suite is not known or lacks its data, judge or probe; or the folder was begun with another
            model, probe or other options, cannot be written, or is another process's.
    """
    modules = {name: load_suite(name) for name in suites}
    check_settings(evaluation.options.settings)
    found = {}
    with hold(evaluation.folder):
        manifest = _begin(evaluation)
        for name, suite in modules.items():
            context = _context(evaluation, name, told, manifest)
            begun = time.monotonic()
            try:
                found[name] = suite.run(context)
            finally:
                context.close()
            _finish(evaluation.folder, manifest, found[name], time.monotonic() - begun)
    return found


def _context(evaluation: Evaluation, suite: str, told: Progress, manifest: dict[str, Any]) -> Context:
    def note_table(name: str, facts: dict[str, Any]) -> None:
        before = manifest["data"].get(name)
        if before is not None and before.get("of") != facts["of"]:
            raise ConfigError(
                f"{evaluation.folder} was begun by an earlier anydepth, which did not note the labels and sources of "
                f"the table {name}: whether they are still the same cannot be said. Give another -o"
            )
        if before not in (None, facts):
            raise ConfigError(
                f"{evaluation.folder} was begun with a table {name} of other rows ({before['rows']}, now "
                f"{facts['rows']}): a text, label, source, licence or tag is another one. Give another -o, or the "
                "table it was begun with"
            )
        if before is None:
            manifest["data"][name] = facts
            _write(evaluation.folder / MANIFEST, manifest)

    return Context(
        suite=suite,
        backend=evaluation.backend,
        options=evaluation.options,
        folder=evaluation.folder,
        judge_spec=evaluation.judge,
        given_probe=evaluation.probe,
        config=evaluation.config,
        told=told,
        on_table=note_table,
    )


def _begin(evaluation: Evaluation) -> dict[str, Any]:
    """The manifest of this folder, which must not be another evaluation's."""
    path = evaluation.folder / MANIFEST
    now = _manifest(evaluation)
    before = _read(path, "data", "suites")
    if before is None:
        if any((evaluation.folder / "records").glob("*.jsonl")):
            raise ConfigError(
                f"{evaluation.folder} has records and no {MANIFEST}: nothing says which tables and which probe they "
                "are of. Give another -o"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write the run folder {path.parent}: {error.strerror or error}") from error
        _write(path, now)
        return now
    settings_before(path, {name: now[name] for name in _FIXED}, evaluation.folder)
    return before


def _manifest(evaluation: Evaluation) -> dict[str, Any]:
    identity, probe = evaluation.backend.identity, evaluation.probe or find_shipped(evaluation.backend)
    card = None if probe is None else probe.card
    return {
        "anydepth": package_versions("anydepth")["anydepth"],
        "model": {
            "name": public_name(identity.name),
            "revision": identity.revision,
            "fingerprint": identity.fingerprint,
            "layers": identity.num_layers,
            "hidden_size": identity.hidden_size,
            "dtype": dtype_of(evaluation.backend),
            "adapter": adapter_digest(evaluation.backend),
        },
        "guard": {"schedule": repr(evaluation.config.schedule), "prefill": evaluation.config.prefill},
        "probe": card
        and {
            "reads": [str(read) for read in card.reads],
            "policy": dict(card.policy) if card.policy else None,
            "sources": [str(source) for source in card.sources],
            "digest": probe_digest(probe),
            "given": evaluation.probe is not None,
        },
        "options": evaluation.options.record(),
        "judge": evaluation.judge,
        "command": evaluation.command,
        "versions": package_versions(*_PACKAGES),
        "machine": {"platform": platform.platform(), "python": platform.python_version(), "cpus": os.cpu_count()},
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {},
        "suites": {},
    }


def _finish(folder: Path, manifest: dict[str, Any], summary: Summary, seconds: float) -> None:
    path = folder / SUMMARY
    before = _read(path, "suites") or {"suites": {}}
    suites = {**before["suites"], summary.suite: summary.record()}
    _write(path, {"suites": {name: suites[name] for name in SUITES if name in suites}})
    spent = manifest["suites"].get(summary.suite, {}).get("seconds", 0)
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    manifest["suites"][summary.suite] = {"seconds": round(spent + seconds, 1), "finished": finished}
    _write(folder / MANIFEST, manifest)


def _read(path: Path, *tables: str) -> dict[str, Any] | None:
    """The object of a file of the run, with its `tables`; None if it is not there."""
    if not path.exists():
        return None
    found = read_json(path, "a file that `anydepth eval` writes")
    for name in tables:
        if not isinstance(found.get(name), dict):
            raise ConfigError(f"{path} has no {name!r}, so `anydepth eval` did not write it; give another folder")
    return found


def _write(path: Path, value: Mapping[str, Any]) -> None:
    try:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise StoreError(f"{path}: a figure cannot be stored as JSON: {error}") from error
    write_whole(path, text + "\n")
