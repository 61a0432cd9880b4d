"""Tell which checkpoint an engine serves, from the checkpoint's files: the engine itself renames and fuses weights."""

import hashlib
import re
from collections.abc import Iterator, Sequence
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
    folder = _folder(model, revision)
    return ModelIdentity(
        name=model,
        revision=getattr(config, "_commit_hash", None) or revision,
        model_type=text.model_type,
        hidden_size=text.hidden_size,
        num_layers=text.num_hidden_layers,
        fingerprint="" if folder is None else _fingerprint(folder, shape),
    )


def _folder(model: str, revision: str | None) -> Path | None:
    if Path(model).is_dir():
        return Path(model)
    hub = require("huggingface_hub", extra="vllm")
    try:
        return Path(hub.snapshot_download(model, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def _fingerprint(folder: Path, shape: tuple[Any, ...]) -> str:
    """Digest over the blocks' one-dimensional weights in bf16; empty if the checkpoint is not of safetensors."""
    torch = require("torch", extra="vllm")
    vectors = dict(_vectors(folder, shape[2]))
    if not vectors:
        return ""
    digest = hashlib.sha256(repr(shape).encode())
    for _, vector in sorted(vectors.items()):
        digest.update(vector.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def _vectors(folder: Path, layers: int) -> Iterator[tuple[str, Any]]:
    """One-dimensional floating weights of the blocks, by block number and name inside the block."""
    safetensors = require("safetensors", extra="vllm")
    files = sorted(folder.glob("*.safetensors"))
    names: dict[str, Path] = {}
    for path in files:
        with safetensors.safe_open(path, framework="pt") as file:
            names.update(dict.fromkeys(file.keys(), path))
    prefix = _block_prefix(list(names), layers)
    if prefix is None:
        return
    for path in files:
        with safetensors.safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if not name.startswith(prefix):
                    continue
                part = file.get_slice(name)
                number, _, inner = name.removeprefix(prefix).partition(".")
                if len(part.get_shape()) == 1 and part.get_dtype() in _FLOATS and number.isdecimal():
                    yield f"{int(number):04d}.{inner}", file.get_tensor(name)


def _block_prefix(names: Sequence[str], layers: int) -> str | None:
    """What comes before the block number: the shallowest prefix with one entry a hidden layer."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        if found := _BLOCK.match(name):
            numbers.setdefault(found[1], set()).add(int(found[2]))
    fitting = [prefix for prefix, seen in numbers.items() if seen == set(range(layers))]
    return min(fitting, key=lambda prefix: (prefix.count("."), prefix), default=None)
