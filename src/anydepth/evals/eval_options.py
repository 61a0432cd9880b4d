"""Options of a run of the evaluation."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anydepth.errors import ConfigError

_PATHS = (".content_probe", ".deep_aligned")
_CONTENT = (".safetensors", ".bin", ".json")
_ENDS = 2**24


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """What a user may set of an evaluation.

    Attributes:
        data_dir: Folder with local copies of the named tables.
        seed: Seed of every choice that is drawn.
        quick: Small samples, minutes instead of hours.
        limit: Harmful answers (and as many benign ones) per suite at most; None is the suite's own number.
        arms: Defences to compare; empty is the suite's own choice.
        settings: Options of single suites, `{"interval.tokens": "64"}`.
        guard_model: Folder or hub id of a model that serves as an external guard.
        attacker: Folder or hub id of the model that writes the attacks of the PAIR-style loop.
    """

    data_dir: Path | None = None
    seed: int = 0
    quick: bool = False
    limit: int | None = None
    arms: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    guard_model: str | None = None
    attacker: str | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}; give a whole number of at least 1")

    def record(self) -> dict[str, Any]:
        """What decides the records, JSON-ready; where the data lies does not."""
        return {
            "seed": self.seed,
            "quick": self.quick,
            "limit": self.limit,
            "arms": list(self.arms),
            "settings": {
                name: _identity(value) if name.endswith(_PATHS) else _public(value)
                for name, value in self.settings.items()
            },
            "guard_model": self.guard_model and _identity(self.guard_model),
            "attacker": self.attacker and _identity(self.attacker),
        }


def _public(value: str) -> str:
    """A path's last part, since the rest is of this machine; anything else as it is."""
    return Path(value).name if Path(value).expanduser().is_absolute() else value


def _identity(value: str) -> str:
    """Name of a file or folder with a digest of its content: what is in it may change under the same name."""
    path = Path(value).expanduser()
    if not path.exists():
        return path.name
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.suffix in _CONTENT):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)} {size}\n".encode())
        with file.open("rb") as content:
            digest.update(content.read(_ENDS))
            content.seek(max(0, size - _ENDS))  # of gigabytes both ends are enough to tell two checkpoints apart
            digest.update(content.read(_ENDS))
    return f"{path.name} (sha256 {digest.hexdigest()[:16]})"
