"""Find the file of a checkpoint that cannot be used."""

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors
import tokenizers
import torch

from anydepth.reasons import reason

_JSON = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "adapter_config.json",
)
_WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors")
_PICKLED = ("pytorch_model*.bin", "adapter_model*.bin")
_TOKENIZERS = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json", "tokenization_*.py")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_OLD_PICKLE = b"\x80"  # how files of PyTorch before 1.6 begin; newer ones are zip archives


def folder_of(place: str | Path, revision: str | None = None) -> Path | None:
    """The folder that a checkpoint's files are in: `place` itself, or the hub's copy on this machine; None without one.

    Args:
        place: A folder or hub id.
        revision: Commit, tag or branch of the hub repository.
    """
    with suppress(OSError, ValueError):  # too long for a path, a null byte in it: then it is no folder
        if Path(place).is_dir():
            return Path(place)
    for name in ("config.json", "adapter_config.json", "tokenizer_config.json"):
        with suppress(OSError, ValueError):  # no repository has such a name, or the cache cannot be looked into
            found = huggingface_hub.try_to_load_from_cache(str(place), name, revision=revision)
            if isinstance(found, str):
                return Path(found).parent
    return None


def find_fault(folder: Path) -> str | None:
    """What is wrong with the first file of `folder` that cannot be used, with its path and the remedy; None if nothing.

    Only files that a library reads when it loads a model, a tokenizer or an adapter are looked at: a broken file of
    another kind is not why loading failed.
    """
    try:
        return next((fault for path in _read(folder) if (fault := file_fault(path)) is not None), None)
    except OSError as error:
        return f"{folder} cannot be listed ({error.strerror}); give this user the right to read it"


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` holds any file that a tokenizer is made from."""
    return any(True for pattern in _TOKENIZERS for _ in folder.glob(pattern))


def file_fault(path: Path) -> str | None:
    """What is wrong with one file, with its path and the remedy, or None."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except FileNotFoundError:
        return f"{path} is a link to a file that is not there; fetch it again"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}); make it a file that this user may read"
    if start == _LFS_POINTER:
        return f"{path} is a git-lfs pointer, not the file itself; fetch it with `git lfs pull`"
    if not start:
        return f"{path} is empty; fetch it again"
    if path.suffix == ".json":
        return _json_fault(path)
    if path.suffix == ".safetensors":
        opened = partial(safetensors.safe_open, framework="numpy")
        return _unreadable(path, opened, "was cut short or is no safetensors file")
    if not zipfile.is_zipfile(path) and not start.startswith(_OLD_PICKLE):
        return f"{path} is no file of weights, or was cut short; fetch it again"
    return None


def _read(folder: Path) -> Iterator[Path]:
    """The files that are read; pickled weights only where there are no others, since they are not looked at then."""
    present = {path.name for path in folder.iterdir()}  # iterdir sees links that lead nowhere
    yield from (folder / name for name in _JSON if name in present)
    yield from sorted(folder.glob("*.index.json"))
    weights = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    yield from weights or sorted(path for pattern in _PICKLED for path in folder.glob(pattern))


def _json_fault(path: Path) -> str | None:
    try:
        held = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # a JSONDecodeError or UnicodeDecodeError; nested too deep
        return f"{path} is not valid JSON ({error}); mend it or fetch it again"
    if not isinstance(held, dict):
        kind = {list: "a list", str: "a string", type(None): "null"}.get(type(held), "a single value")
        return f"{path} holds {kind}, not an object; mend it or fetch it again"
    if path.name.endswith(".index.json"):
        return _index_fault(path, held)
    if path.name == "tokenizer.json":
        fault = "holds no tokenizer that this version of tokenizers reads"
        return _unreadable(path, tokenizers.Tokenizer.from_file, fault)
    return _dtype_fault(path, held) if path.name == "config.json" else None


def _index_fault(path: Path, index: dict[str, Any]) -> str | None:
    shards = index.get("weight_map")
    if not isinstance(shards, dict):
        return f"{path} has no weight_map, which says where each weight is; fetch it again"
    named = set(map(str, shards.values()))
    missing = min((name for name in named if not (path.parent / name).is_file()), default=None)
    return None if missing is None else f"{path} names {missing}, which is not there; fetch that file"


def _unreadable(path: Path, library: Callable[[str], Any], fault: str) -> str | None:
    """The fault, with what the library says of it, if it cannot read the file."""
    try:
        library(str(path))
    except Exception as error:  # tokenizers raises bare Exceptions
        return f"{path} {fault} ({reason(error)}); fetch it again"
    return None


def _dtype_fault(path: Path, config: dict[str, Any]) -> str | None:
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]  # e.g. text_config
    for part in parts:
        for key in ("dtype", "torch_dtype"):
            name = part.get(key)
            if isinstance(name, str) and name != "auto" and not isinstance(getattr(torch, name, None), torch.dtype):
                return f"{path} says {key} is {name!r}; write the name of a dtype of PyTorch, e.g. 'bfloat16'"
    return None
