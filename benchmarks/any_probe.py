#!/usr/bin/env python3
"""Write a probe with a random direction: for measuring what a check costs, where what it says does not matter.

    any_probe.py MODEL -o FILE.safetensors [--trained K]

`--trained` gives it K random embeddings as Safety Tokens of its own, instead of the template's header.
"""

import argparse
from pathlib import Path

import numpy as np

from anydepth.backends.protocol import Read
from anydepth.backends.transformers import TransformersBackend, load
from anydepth.backends.transformers.blocks import default_site
from anydepth.detectors import LinearProbe, ProbeCard


def any_probe(backend: TransformersBackend, trained: int = 0) -> LinearProbe:
    """A probe with a small random direction at the default site, behind the header or `trained` random embeddings."""
    header, width, rng = backend.header, backend.identity.hidden_size, np.random.default_rng(0)
    card = ProbeCard(
        model=backend.identity,
        header_ids=header.ids,
        reads=(Read(default_site(backend.model), trained - 1 if trained else header.read_index),),
        template_digest=backend.template.digest,
        safety_tokens=trained,
    )
    weight = rng.standard_normal((1, width)).astype(np.float32) * 1e-3
    rows = backend.model.get_input_embeddings().weight[:1000].detach().float()
    own = rng.normal(0, float(rows.std()), (trained, width)).astype(np.float32) if trained else None
    return LinearProbe(weight, 0.0, card, embeddings=own)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--trained", type=int, default=0)
    given = parser.parse_args()
    any_probe(load(given.model, dtype="bfloat16"), given.trained).save(given.out)


if __name__ == "__main__":
    main()
