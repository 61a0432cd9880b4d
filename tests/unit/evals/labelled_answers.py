"""Mild labelled answers in the words of the tiny tokenizer, as tables of a folder, and a context to measure them in."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anydepth.backends.transformers import TransformersBackend
from anydepth.detectors import LinearProbe
from anydepth.evals.context import Context
from anydepth.evals.eval_options import EvalOptions
from tests import tiny

LENGTH = 40
_WORDS = {"harmful": (200, 230), "benign": (100, 130)}


def rows(name: str, label: str, count: int, *, sources: int = 2, told: bool = True) -> list[dict[str, str]]:
    """Answers to different prompts; those that are `told` apart use other words for each label."""
    rng = random.Random(f"{name} {label}")
    words = range(*_WORDS[label]) if told else range(100, 230)
    return [
        {
            "id": f"{name}-{label}-{number}",
            "source": f"source-{number % sources}",
            "prompt": f"w{number} w{rng.randrange(240)} w{rng.randrange(240)} {name} {label}",
            "response": " ".join(f"w{rng.choice(words)}" for _ in range(LENGTH)),
            "label": label,
        }
        for number in range(count)
    ]


def write_table(folder: Path, name: str, records: list[dict[str, str]]) -> None:
    """Put a table into a data folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records), encoding="utf-8")


def data_folder(folder: Path, *, count: int = 16, told: bool = True) -> Path:
    """All tables that both suites ask for."""
    both = [row for label in _WORDS for row in rows("train", label, count, told=told)]
    write_table(folder, "probe_train", both)
    write_table(folder, "pairs_deep_validation", rows("deep", "harmful", 3 * count, told=told))
    for name in ("pairs_benign_validation", "responses_xstest"):
        write_table(folder, name, rows(name, "benign", 3 * count, told=told))
    return folder


def backend() -> TransformersBackend:
    """A tiny random model."""
    return TransformersBackend(tiny.tiny_model("Llama"), tiny.tiny_tokenizer())


def context(
    suite: str,
    folder: Path,
    data: Path | None,
    *,
    model: TransformersBackend | None = None,
    probe: LinearProbe | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Context:
    """A context of one suite over the tables in `data`."""
    own = {f"{suite}.{name}": str(value) for name, value in (settings or {}).items()}
    return Context(
        suite=suite,
        backend=model or backend(),
        options=EvalOptions(data_dir=data, settings=own, **{"quick": True, **options}),
        folder=folder,
        given_probe=probe,
    )


class Untouchable:
    """Stands in for a model's ways to run: a run that has all its records needs none of them."""

    def __init__(self, backend: TransformersBackend) -> None:
        self.model, self.template, self.identity, self.header = (
            backend.model,
            backend.template,
            backend.identity,
            backend.header,
        )
        self.capabilities = backend.capabilities
        self.check_site = backend.check_site
        self.describe = backend.describe
        self.decode_text = backend.decode_text
