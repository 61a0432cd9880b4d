"""`make test-transformers` installs what another release needs in another version, and nothing else."""

from importlib import metadata
from pathlib import Path

from scripts.other_transformers import lacking


def a_package(folder: Path, name: str, version: str, *needs: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {each}" for each in needs),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n", "utf-8")


def test_what_is_lacking_is_named(tmp_path):
    here = metadata.version("safetensors")
    needs = (f"safetensors=={here}", "numpy<1", "hub_x<2,>=1", 'numpy<1; extra == "dev"', "no-such-package")
    a_package(tmp_path, "transformers", "5.16.1", *needs)
    assert lacking(tmp_path) == ["hub_x<2,>=1", "no-such-package", "numpy<1"]
    a_package(tmp_path, "hub_x", "1.5", "numpy>=1")
    assert lacking(tmp_path) == ["no-such-package", "numpy<1"]
