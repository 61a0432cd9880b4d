"""Say what the states of a store are: of which model, read with which header, in which number format."""

import hashlib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from anydepth.backends.altered_weights import adapter_digest, quantisation
from anydepth.backends.protocol import CONTENT, Reader
from anydepth.errors import ConfigError, StoreError
from anydepth.probes.states.control_suffix import suffix_ids
from anydepth.probes.states.plan import CollectPlan
from anydepth.probes.states.store import Manifest
from anydepth.templates.header import check_token

_TRAINED = " trained, "


def manifest_for(
    backend: Reader, plan: CollectPlan, *, dtype: str | None = None, adapter: str | None = None
) -> Manifest:
    """The manifest of the store that `plan` fills from `backend`; `dtype` is `dtype_of(backend)` if it is None.

    Raises:
        ConfigError: A token is not in what is appended, or there is no such control.
        UnsupportedModel: A site does not exist.
    """
    header = backend.header
    ids = header.ids if plan.suffix == "header" else suffix_ids(backend, plan.suffix)
    count = len(ids) if plan.embeddings is None else len(plan.embeddings)
    tokens = plan.tokens if plan.tokens is not None else (CONTENT, *range(count))
    for token in tokens:
        check_token(token)
        if token >= count:
            raise ConfigError(
                f"token {token} is not among the {count} of the {plan.suffix}; choose -1 to {count - 1}, or a mean"
            )
    for site in plan.sites:
        backend.check_site(site)
    if (weights := adapter_digest(backend)) is not None:  # a folder may be trained again
        adapter = f"{Path(adapter or 'adapter').name} (weights {weights})"
    return Manifest(
        model=backend.identity,
        template_digest=backend.template.digest,
        suffix=plan.suffix if plan.embeddings is None else trained_suffix(plan.embeddings),
        header_ids=tuple(ids),
        header_tokens=header.tokens if plan.suffix == "header" else tuple(backend.decode_text([i]) for i in ids),
        read_index=header.read_index if plan.suffix == "header" else len(ids) - 1,
        sites=plan.sites,
        tokens=tuple(tokens),
        dtype=dtype_of(backend) if dtype is None else dtype,
        versions=package_versions("anydepth", "numpy", "torch", "transformers", "vllm"),
        adapter=adapter,
    )


def trained_suffix(embeddings: np.ndarray) -> str:
    """What a manifest calls trained Safety Tokens, float32 `[tokens, hidden_size]`: their number and a digest."""
    return f"{len(embeddings)}{_TRAINED}{hashlib.sha256(embeddings.tobytes()).hexdigest()[:16]}"


def check_appended(manifest: Manifest, plan: CollectPlan) -> None:
    """StoreError if a store is of trained Safety Tokens, and the plan of others or of none, or the other way round."""
    asked = None if plan.embeddings is None else trained_suffix(plan.embeddings)
    if manifest.suffix != asked and (asked is not None or _TRAINED in manifest.suffix):
        raise StoreError(
            f"the store is of {manifest.suffix!r}, the plan of {asked or plan.suffix!r}; collect into another folder"
        )


def dtype_of(backend: Reader) -> str:
    """The type that a backend's model runs in, e.g. `bfloat16` or `bfloat16, 4-bit (awq)`: what a manifest is told.

    A quantised checkpoint has the fingerprint of the one that it was made of, and other states.
    """
    known = backend if hasattr(backend, "dtype") else getattr(backend, "model", None)
    dtype = str(getattr(known, "dtype", "")).removeprefix("torch.")
    quantised = quantisation(backend)
    return dtype if quantised is None else f"{dtype}, {quantised}"


def package_versions(*names: str) -> dict[str, str]:
    """Version of each package that is installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
