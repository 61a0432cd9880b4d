"""Tell in which ways a model's weights are others than those it was trained with: quantised, sparse or adapted.

The fingerprint of a model leaves both out of account, so that a probe binds. The states are others all the same.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ADAPTER, QUANTISED, SPARSE = "adapter", "quantised", "sparse"

_LIBRARIES = ("torchao", "quanto", "bitsandbytes")
"""Libraries that keep quantised weights in classes of their own, by a part of the module's name."""

_BITS = ("bits", "nbits", "num_bits", "w_bit")
_WIDTH = re.compile(r"(?:int|uint|fp|float|nf|bits?|\bw)(\d)(?!\d)", re.IGNORECASE)
_OF_GGUF = re.compile(r"^T?I?Q(\d)")
_GGUF_NAME = re.compile(r"[-._:/]((?:T?I?Q\d|MXFP4)(?:_\w+)?|BF16|F16|F32)(?:-\d+-of-\d+)?(?:\.gguf)?$", re.IGNORECASE)
"""The number format at the end of a GGUF file's name: llama.cpp's convention, by which vLLM chooses the hub's files."""


@dataclass(frozen=True, slots=True)
class Alteration:
    """One way in which weights are others than those of the checkpoint.

    Attributes:
        kind: `8-bit`, `4-bit` …, `quantised` where the width is not known, `sparse` where some of the weights were set
            to zero and all are in 32 or 16 bits, or `adapter`.
        how: What did it: the method of a quantised model (`torchao`, `awq`, `gguf Q4_K_M`) or of a sparse one
            (`compressed-tensors 2:4`), or of an adapter the digest of its weights.
    """

    kind: str
    how: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.how})"

    @classmethod
    def joined(cls, found: Sequence["Alteration"]) -> "Alteration":
        """Several as one, for what was measured with all of them: an adapter on quantised weights."""
        (first, *others) = found
        return cls(" + ".join([first.kind, *(each.kind for each in others)]), " + ".join(each.how for each in found))


def alterations(backend: Any) -> tuple[Alteration, ...]:
    """What is seen of a backend's weights; empty for those of a checkpoint in 32 or 16 bits.

    Not seen are an adapter that was merged into the weights, and a GGUF file that was not opened by
    `anydepth.backends.transformers.load`: the weights are plain ones then. States that are read below an adapter are
    not altered by it.
    """
    return tuple(found for found in (quantisation(backend), _adapter(backend)) if found is not None)


def quantisation(backend: Any) -> Alteration | None:
    """How a backend's weights are quantised, or made sparse; None if they are not, or nothing says so."""
    if made := getattr(backend, "gguf_format", None):
        return _of_gguf(made)
    model = getattr(backend, "model", None)
    config = getattr(backend, "quantization_config", None)
    config = getattr(getattr(model, "config", None), "quantization_config", None) if config is None else config
    if config is not None:
        method = _method(config)
        if method == "gguf" and (named := _GGUF_NAME.search(str(_field(_field(backend, "identity"), "name")))):
            return _of_gguf(named[1].upper())
        if method == "compressed-tensors" and not _has_number_formats(config):
            return _sparsity(config)
        return Alteration(_kind(_bits(config)), method)
    return next(_quantised_parameters(model), None)


def adapter_digest(backend: Any) -> str | None:
    """Digest of the weights that an adapter adds to a backend's model, 16 hex digits; None if there is none to see.

    Weights that are kept elsewhere, as `device_map="auto"` may keep them, are not seen.
    """
    model: Any = getattr(backend, "model", None)
    if not hasattr(model, "named_parameters"):
        return None
    digest = hashlib.sha256()
    added = [(name, each) for name, each in model.named_parameters() if "lora" in name]
    if any(each.is_meta for _, each in added):
        return None
    for name, each in sorted(added, key=lambda named: named[0]):
        digest.update(name.encode() + each.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16] if added else None


def _of_gguf(made: str) -> Alteration | None:
    """The alteration that a GGUF file's number format is; None for F32, F16 and BF16, which are plain."""
    width = _OF_GGUF.match(made)
    bits = width[1] if width else _width(made)
    return Alteration(_kind(bits), f"gguf {made}") if bits else None


def _method(config: Any) -> str:
    """What quantised the weights; ModelOpt's separate file names the producer alone."""
    method = _field(config, "quant_method") or _field(_field(config, "producer"), "name")
    return str(getattr(method, "value", method) or "unknown method")


def _has_number_formats(config: Any) -> bool:
    """Whether a config of compressed-tensors says of anything, weights or not, in which number format it is."""
    return any(_field(each, "config_groups") or _field(each, "kv_cache_scheme") for each in _levels(config))


def _sparsity(config: Any) -> Alteration | None:
    """How weights were made sparse; None where the config says that they are dense."""
    said = _field(config, "sparsity_config")
    if said is not None and (not said or _field(said, "format") == "dense"):
        return None
    return Alteration(SPARSE, f"compressed-tensors {_field(said, 'sparsity_structure') or ''}".rstrip())


def _adapter(backend: Any) -> Alteration | None:
    if not getattr(backend, "adapter", False) or getattr(backend, "reads_base_weights", False):
        return None
    own = adapter_digest(backend)  # vLLM's adapters come with the requests
    return Alteration(ADAPTER, own or ("of unknown weights" if hasattr(backend, "model") else "of requests"))


def _kind(bits: int | str | None) -> str:
    return f"{bits}-bit" if bits else QUANTISED


def _bits(config: Any) -> int | str | None:
    """Bits of a weight, from a quantization config as libraries write it; None if it does not say."""
    for bits in (4, 8):
        if _field(config, f"load_in_{bits}bit") is True:
            return bits
    for each in (config, *_parts(config)):
        for name in _BITS:
            if (bits := str(_field(each, name)).removesuffix(".0")).isdecimal() and bits != "0":
                return bits
    texts = [_field(config, name) for name in ("weights", "quant_type", "fmt")]
    texts += [*_algorithms(config), _field(config, "quant_method")]
    found = (_width(str(getattr(text, "value", text))) for text in texts if text is not None)
    return next(filter(None, found), None)


def _width(text: str) -> str | None:
    """The smallest number of bits in the names of number formats: activations may have more than the weights."""
    return min(_WIDTH.findall(text), default=None)


def _parts(config: Any) -> Iterator[Any]:
    """What compressed-tensors and HQQ say of the weights, one level down."""
    for level in _levels(config):
        groups = _field(level, "config_groups")
        for group in groups.values() if isinstance(groups, Mapping) else ():
            yield _field(group, "weights")
    yield _field(_field(config, "quant_config"), "weight_quant_params")


def _levels(config: Any) -> tuple[Any, Any]:
    """A config, and the one that Transformers keeps within its own config of compressed-tensors."""
    return config, _field(config, "quantization_config")


def _algorithms(config: Any) -> Iterator[str]:
    """What ModelOpt calls its number formats (`NVFP4`, `W4A8_AWQ`), as one text if they differ from layer to layer."""
    for each in (config, _field(config, "quantization")):
        layers = _field(each, "quantized_layers")
        named = [_field(layer, "quant_algo") for layer in layers.values()] if isinstance(layers, Mapping) else []
        if found := [str(name) for name in (*named, _field(each, "quant_algo")) if name]:
            yield " ".join(found)


def _field(record: Any, name: str) -> Any:
    return record.get(name) if isinstance(record, Mapping) else getattr(record, name, None)


def _quantised_parameters(model: Any) -> Iterator[Alteration]:
    """What the classes of a model's parameters say, for weights that were quantised after they had been loaded."""
    for _, each in model.named_parameters() if hasattr(model, "named_parameters") else ():
        for kind in (type(each), type(getattr(each, "data", None))):
            library = next((name for name in _LIBRARIES if name in kind.__module__), None)
            if library:
                said = (getattr(each, "target_dtype", ""), getattr(getattr(each, "qtype", None), "name", ""))
                width = next(filter(None, map(_width, (*map(str, said), kind.__name__))), None)
                yield Alteration(_kind(width), library)
