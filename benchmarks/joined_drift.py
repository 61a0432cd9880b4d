"""Join two runs of probe_drift.py, of one model, probe and set of answers, whose other formats were scanned apart.

    python -m benchmarks.joined_drift EARLIER LATER -o RUN      with PYTHONPATH=src:.

A format that both have is LATER's. Both have to halt as many answers of each set with bfloat16 weights: every format is
compared with the bfloat16 of its own run.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anydepth.errors import ConfigError
from benchmarks.probe_drift import FORMATS, REFERENCE


@dataclass(frozen=True, slots=True)
class DriftRun:
    """Manifest and suite of a run folder of probe_drift.py."""

    manifest: Mapping[str, Any]
    suite: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "DriftRun":
        """What is in the folder."""
        manifest, summary = (json.loads((folder / f"{n}.json").read_text("utf-8")) for n in ("manifest", "summary"))
        return cls(manifest, summary["suites"]["drift"])

    @property
    def by_weights(self) -> dict[str, list[Any]]:
        """The figures of each format, by what its weights are called."""
        found: dict[str, list[Any]] = {}
        for each in self.suite["figures"]:
            found.setdefault(each["group"]["weights"], []).append(each)
        return found

    @property
    def halted(self) -> dict[str, float]:
        """Share halted of each set with the weights that the others are compared with."""
        return {each["group"]["of"]: each["value"] for each in self.by_weights[REFERENCE] if each["name"] == "halted"}

    def write(self, folder: Path) -> None:
        """Write it into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (("manifest", self.manifest), ("summary", {"suites": {"drift": self.suite}})):
            (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def joined(earlier: DriftRun, later: DriftRun, name: str) -> DriftRun:
    """Both as one run whose folder is called `name`. ConfigError if model, probe or answers are not the same."""
    for key in ("model", "probe", "data"):
        one, other = earlier.manifest[key], later.manifest[key]
        if one != other:
            raise ConfigError(
                f"{key} is {one} in the earlier run and {other} in the later; join runs of the same {key}"
            )
    if earlier.halted != later.halted:
        raise ConfigError(
            f"with {REFERENCE} weights {earlier.halted} are halted in the earlier run and {later.halted} in the later; "
            "scan all formats in one run"
        )
    both = [earlier.manifest, later.manifest]
    formats = sorted({each for of in both for each in of["options"]["formats"]}, key=FORMATS.index)
    command = later.manifest["command"].replace(";".join(both[1]["options"]["formats"]), ";".join(formats))
    manifest = {
        **later.manifest,
        "options": {**later.manifest["options"], "formats": formats},
        "command": command.rpartition(" ")[0] + f" {name}",
        "versions": {**both[0]["versions"], **both[1]["versions"]},
    }
    figures = {**earlier.by_weights, **later.by_weights}
    notes = dict.fromkeys([*earlier.suite["notes"], *later.suite["notes"]])
    suite = {**later.suite, "figures": [each for of in figures.values() for each in of], "notes": [*notes]}
    return DriftRun(manifest, suite)


def main() -> None:
    """Join two run folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("earlier", type=Path)
    parser.add_argument("later", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True, help="the run folder; may be one of the two")
    args = parser.parse_args()
    joined(DriftRun.read(args.earlier), DriftRun.read(args.later), args.out.name).write(args.out)


if __name__ == "__main__":
    main()
