"""Tell which checkpoint an engine serves, from the checkpoint's files: the engine itself renames and fuses weights."""

import hashlib
import re
from collections.abc import Sequence
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
    """Digest over the blocks' one-dimensional weights in bf16; empty if the checkpoint is not of safetensors."""
    torch = require("torch", extra="transformers")
    vectors = block_vectors(folder, shape[2])
    if not vectors:
        return ""
    digest = hashlib.sha256(repr(shape).encode())
    for _, vector in sorted(vectors.items()):
        digest.update(vector.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def block_vectors(folder: Path, layers: int) -> dict[str, Any]:
    """The one-dimensional floating weights of the blocks, e.g. those of the norms, from the safetensors files.

    Args:
        folder: The checkpoint's files.
        layers: Number of blocks.

    Returns:
        A torch tensor in the file's number format for each name, which is the block's number with four digits and the
        name inside the block: `0015.input_layernorm.weight`. Empty without safetensors files.
    """
    safetensors = require("safetensors", extra="transformers")
    names: list[str] = []
    vectors: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                names.append(name)
                part = file.get_slice(name)
                if len(part.get_shape()) == 1 and part.get_dtype() in _FLOATS:
                    vectors[name] = file.get_tensor(name)
    prefix = _block_prefix(names, layers)
    matches = ((_BLOCK.match(name), vector) for name, vector in vectors.items())
    return {f"{int(found[2]):04d}.{found[3]}": vector for found, vector in matches if found and found[1] == prefix}


def _block_prefix(names: Sequence[str], layers: int) -> str | None:
    """What comes before the block number: the shallowest prefix with one entry a hidden layer."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        if found := _BLOCK.match(name):
            numbers.setdefault(found[1], set()).add(int(found[2]))
    fitting = [prefix for prefix, seen in numbers.items() if seen == set(range(layers))]
    return min(fitting, key=lambda prefix: (prefix.count("."), prefix), default=None)
