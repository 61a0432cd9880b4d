"""Remember what a result file was made with, so that going on with something else is refused."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anydepth.cli.options import GuardOptions, ModelOptions
from anydepth.errors import ConfigError


def check_manifest(output: Path, model: ModelOptions, guard: GuardOptions) -> None:
    """Compare with the manifest beside `output`, or write it if there is none.

    Raises ConfigError, with the option and both values, if `output` was begun with another model or guard: its records
    could not be told apart.
    """
    path = output.with_name(f"{output.name}.run.json")
    now = _settings(model, guard)
    if path.exists() and output.exists() and output.stat().st_size:
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(
                f"{path} is not the manifest of a scan ({error}); remove it or give another -o"
            ) from error
        for name, value in now.items():
            if before.get(name) != value:
                raise ConfigError(
                    f"{output} was begun with {name} {before.get(name)!r}, now it is {value!r}; give another -o, or "
                    "the options it was begun with"
                )
        return
    if not path.parent.is_dir():
        raise ConfigError(f"-o {output}: the folder {path.parent} does not exist")
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(now, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def _settings(model: ModelOptions, guard: GuardOptions) -> dict[str, Any]:
    """What decides the scores and the verdict; a probe counts by its content, not by its path."""
    found = {**asdict(model), **asdict(guard)}
    probe = guard.probe
    digest = hashlib.sha256(Path(probe).read_bytes()).hexdigest()[:16] if probe and Path(probe).is_file() else None
    found["probe"] = digest or (str(probe) if probe else None)
    found["template_kwargs"] = found["template_kwargs"] or None  # as in manifests of before there were any
    for where in ("device", "engine", "engine_args"):  # where it runs decides no verdict
        del found[where]
    return {
        name: value if isinstance(value, int | float | bool) else value and str(value) for name, value in found.items()
    }
