"""A tiny model, a probe and mild tables for tests of evaluations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.backends.protocol import CONTENT, Read
from anydepth.backends.transformers import TransformersBackend
from anydepth.backends.transformers.blocks import default_site
from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.evals.context import Context
from anydepth.evals.eval_options import EvalOptions
from anydepth.policy import Policy, Threshold, policy_record
from tests import tiny
from tests.conversations import words

TABLES = ("pairs_deep_validation", "pairs_benign_validation", "responses_xstest")
FEW = {"depths": "0,5,30", "tokens": "12"}
"""Settings of the suite deep-prefill that suit a tiny model."""


def tiny_backend(family: str = "Llama") -> TransformersBackend:
    """A tiny random model of `family`."""
    return TransformersBackend(tiny.tiny_model(family), tiny.tiny_tokenizer())


def random_probe(
    backend: TransformersBackend,
    seed: int = 1,
    *,
    policy: Policy | None = None,
    content: bool = False,
    scale: float = 1,
) -> LinearProbe:
    """A probe with a random direction, whose scores go up and down."""
    header = backend.header
    card = ProbeCard(
        model=backend.identity,
        header_ids=header.ids,
        reads=(Read(default_site(backend.model), CONTENT if content else header.read_index),),
        template_digest=backend.template.digest,
        dtype="float32",
        policy=policy_record(policy or Threshold(0.7)),
        calibration={"target": 0.2},
    )
    weight = np.random.default_rng(seed).standard_normal((1, backend.identity.hidden_size)) * scale
    return LinearProbe(weight.astype(np.float32), 0.0, card)


def write_tables(folder: Path, rows: int = 24, names: Sequence[str] = TABLES, longest: int = 40) -> Path:
    """Tables of harmless words; those of the deep pairs are labelled harmful."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        label = "harmful" if name == "pairs_deep_validation" else "benign"
        lines = [_row(f"{name}-{n}", 61 * place + n, label, 12 + 7 * n % longest) for n in range(rows)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def cut_journals(folder: Path, suite: str) -> None:
    """Leave a finished run's records and texts as a killed one's: the first quarter, and a line that breaks off."""
    for kind in ("records", "texts"):
        path = folder / kind / f"{suite}.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[: len(lines) // 4]) + lines[-1][:7])


def _row(key: str, number: int, label: str, length: int) -> dict[str, Any]:
    return {
        "id": key,
        "source": f"s{number % 2}",
        "prompt": words(11 * number, 4 + number % 3),
        "response": words(5 * number + 3, length),
        "label": label,
    }


def tiny_context(tmp_path: Path, suite: str, **given: Any) -> Context:
    """A context of `suite`; `options` go into `EvalOptions`, everything else into the context."""
    backend = given.pop("backend", None) or tiny_backend()
    data = tmp_path / "data"
    if not data.exists():
        write_tables(data)
    options = EvalOptions(data_dir=data, **{"quick": True, "limit": 4, **given.pop("options", {})})
    defaults = {"given_probe": random_probe(backend), "judge_spec": "refusal", "folder": tmp_path / "run"}
    return Context(suite, backend, options, **{**defaults, **given})
