"""More mild tables, and a context over them whose model never ends a turn by itself."""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from anydepth.backends.transformers import TransformersBackend
from anydepth.config import GuardConfig
from anydepth.detectors import LinearProbe
from anydepth.evals.context import Context
from anydepth.evals.eval_options import EvalOptions
from anydepth.evals.figure import Figure, Summary
from anydepth.evals.suite import load_suite
from anydepth.policy import Threshold
from anydepth.schedule import Every
from tests import tiny
from tests.conversations import words
from tests.evaluations import random_probe

CONFIG = GuardConfig(schedule=Every(8), refusal="w1 w2 w3")


@cache
def backend() -> TransformersBackend:
    """A random model whose answers are as long as they may be."""
    model = tiny.tiny_model("Llama")
    model.generation_config.eos_token_id = None
    return TransformersBackend(model, tiny.tiny_tokenizer())


def probe(threshold: float = 0.5) -> LinearProbe:
    """A probe that halts whatever it halts."""
    return random_probe(backend(), 3, policy=Threshold(threshold))


def table(folder: Path, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one table."""
    lines = [json.dumps({"id": f"{name}-{number}", **row}) for number, row in enumerate(rows)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def pairs(start: int, count: int, label: str, *, length: int = 20) -> list[dict[str, Any]]:
    """Prompts of four words with answers, all different, of three sources."""
    return [
        {
            "prompt": words(start + 3 * number, 4),
            "response": words(start + 5 * number + 1, length + number),
            "label": label,
            "source": f"{label}-{number % 3}",
        }
        for number in range(count)
    ]


def context(suite: str, folder: Path, data: Path, *, probe: LinearProbe | None = None, **options: Any) -> Context:
    """A quick evaluation of `suite` into `folder`; `options` go into `EvalOptions`."""
    options = {"data_dir": data, "quick": True, "arms": ("probe", "rethink"), "limit": None, **options}
    given = probe or random_probe(backend(), 3)
    return Context(suite, backend(), EvalOptions(**options), folder, "refusal", given_probe=given, config=CONFIG)


def measured(context: Context) -> Summary:
    """What the suite of the context makes of it; the context is closed."""
    try:
        return load_suite(context.suite).run(context)
    finally:
        context.close()


def one(summary: Summary, name: str, **group: Any) -> Figure:
    """The one figure of this name whose group has these values."""
    found = [f for f in summary.figures if f.name == name and group.items() <= dict(f.group).items()]
    assert len(found) == 1, [f.group for f in found]
    return found[0]
