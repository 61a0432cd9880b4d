"""Tell which checkpoint an engine serves, from the checkpoint's files: the engine itself renames and fuses weights."""

import hashlib
import json
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from anydepth.backends.protocol import ModelIdentity
from anydepth.extras import require

_BLOCK = re.compile(r"^(.+?\.)(\d+)\.(.+)$")
_FLOATS = {"F64", "F32", "F16", "BF16"}


def identify(model: str, config: Any, revision: str | None = None) -> ModelIdentity:
    """Describe the checkpoint; the fingerprint is that of `anydepth.backends.transformers.identity`.

    Args:
        model: Folder, or hub id of a model that is in the local cache.
        config: Its Transformers configuration.
        revision: Commit, tag or branch of a hub model.
    """
    text = config.get_text_config(decoder=True)
    shape = (text.model_type, text.hidden_size, text.num_hidden_layers, text.vocab_size)
    folder = checkpoint_folder(model, revision)
    return ModelIdentity(
        name=model,
        revision=getattr(config, "_commit_hash", None) or revision,
        model_type=text.model_type,
        hidden_size=text.hidden_size,
        num_layers=text.num_hidden_layers,
        fingerprint="" if folder is None else _fingerprint(folder, shape),
    )


def checkpoint_folder(model: str, revision: str | None = None) -> Path | None:
    """The folder of the checkpoint's files: `model` itself, or the hub's copy on this machine; None without one."""
    if Path(model).is_dir():
        return Path(model)
    hub = require("huggingface_hub", extra="transformers")
    try:
        return Path(hub.snapshot_download(model, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def _fingerprint(folder: Path, shape: tuple[Any, ...]) -> str:
    """Digest over the blocks' one-dimensional weights in bf16; empty if they are not found, or not in safetensors."""
    torch = require("torch", extra="transformers")
    _, width, layers, vocabulary = shape
    vectors = block_vectors(folder, layers=layers, embeddings=(vocabulary, width))
    if not vectors:
        return ""
    digest = hashlib.sha256(repr(shape).encode())
    for _, vector in sorted(vectors.items()):
        digest.update(vector.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def block_vectors(folder: Path, *, layers: int, embeddings: tuple[int, int]) -> dict[str, Any]:
    """The one-dimensional floating weights of the language model's blocks, e.g. those of the norms.

    Args:
        folder: The checkpoint's files.
        layers: Number of blocks.
        embeddings: Shape of the language model's embeddings: vocabulary and width.

    Returns:
        A torch tensor in the file's number format for each name, which is the block's number with four digits and the
        name inside the block: `0015.input_layernorm.weight`. Empty without safetensors files, and where it cannot be
        told which blocks are the language model's.
    """
    safetensors = require("safetensors", extra="transformers")
    names: list[str] = []
    tables: list[str] = []
    vectors: dict[str, Any] = {}
    for path in _files(folder):
        with safetensors.safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                names.append(name)
                part = file.get_slice(name)
                size = part.get_shape()
                if tuple(size) == embeddings:
                    tables.append(name)
                if len(size) == 1 and part.get_dtype() in _FLOATS:
                    vectors[name] = file.get_tensor(name)
    prefix = _block_prefix(names, tables, layers)
    matches = ((_BLOCK.match(name), vector) for name, vector in vectors.items())
    return {
        f"{int(found[2]):04d}.{found[3]}": vector
        for found, vector in matches
        if found and found[1] == prefix and int(found[2]) < layers
    }


def _files(folder: Path) -> list[Path]:
    """The files that are loaded: of the index, or the one file. Mistral puts the same weights beside them again."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))


def _block_prefix(names: Sequence[str], embeddings: Sequence[str], layers: int) -> str | None:
    """What comes before the number of the language model's blocks; None if there is no telling.

    A tower for images or sound may have as many blocks as the language model, and the language model may be stored with
    a block more than it runs. The language model's blocks are those that are stored nearest to its embeddings.
    """
    numbers: dict[str, set[int]] = {}
    for name in names:
        if found := _BLOCK.match(name):
            numbers.setdefault(found[1], set()).add(int(found[2]))
    fitting = [prefix for prefix, seen in numbers.items() if seen >= set(range(layers))]
    far = {prefix: min((_steps(prefix, name) for name in embeddings), default=0) for prefix in fitting}
    nearest = [prefix for prefix in fitting if far[prefix] == min(far.values())]
    return nearest[0] if len(nearest) == 1 else None


def _steps(prefix: str, name: str) -> int:
    """How many steps up and down the tree of modules lead from the parent of a weight's module to a list of blocks."""
    one, other = prefix.rstrip(".").split("."), name.split(".")[:-2]
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))
    return len(one) + len(other) - 2 * shared
