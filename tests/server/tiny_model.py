"""A tiny random model and a probe for it, in a folder: what `anydepth serve` loads."""

from pathlib import Path

import numpy as np

from anydepth import Guard, LinearProbe, Threshold
from anydepth.backends.protocol import Read, Site
from anydepth.backends.transformers import TransformersBackend, load
from anydepth.detectors import ProbeCard
from tests import tiny

PROBE = "probe.safetensors"
PROMPTS = [f"w{n} w{n + 7} w{3 * n}" for n in range(1, 17)]
"""Questions for it; it answers nothing sensible."""


def build(folder: Path, *, blocked: float = 0.0) -> Path:
    """Write the model and `probe.safetensors`; its threshold halts about this fraction of the answers to `PROMPTS`."""
    model = tiny.tiny_model("Llama")
    model.generation_config.eos_token_id = None  # a random model would end its answers anywhere
    tokenizer = tiny.tiny_tokenizer()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    backend = load(folder)
    probe_of(backend, threshold=_threshold(backend, blocked)).save(folder / PROBE)
    return folder


def probe_of(backend: TransformersBackend, threshold: float) -> LinearProbe:
    """A probe for the model that halts at this score."""
    weight = np.random.default_rng(0).normal(size=backend.identity.hidden_size).astype(np.float32) / 4
    card = ProbeCard(
        model=backend.identity,
        header_ids=backend.header.ids,
        reads=(Read(Site(2), backend.header.read_index),),
        template_digest=backend.template.digest,
        policy={"name": "threshold", "threshold": threshold},
    )
    return LinearProbe(weight, 0.0, card)


def _threshold(backend: TransformersBackend, blocked: float) -> float:
    if not blocked:
        return 1.0
    guard = Guard.from_backend(backend, probe_of(backend, 1.0), policy=Threshold(1.0), release="monitor")
    answers = [guard.generate(prompt, max_new_tokens=40, do_sample=False) for prompt in PROMPTS]
    return float(np.quantile([answer.verdict.score for answer in answers], 1 - blocked))
