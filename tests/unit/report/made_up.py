"""Evaluations that never were, but look like real ones: every kind of chart, gaps, long notes, many arms."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.evals.estimates import roc
from anydepth.evals.estimates import share as share_of
from anydepth.evals.eval_options import EvalOptions
from anydepth.evals.figure import Chart, Figure, Summary

DEPTHS = (0, 5, 25, 100, 250, 500, 1000, 2500)
ARMS = (
    "no guard",
    "probe",
    "rethink look-ahead",
    "rethink score",
    "self-defence prompt",
    "probe without header",
    "external guard classifier",
    "deep-alignment LoRA",
)
MATCHER = "refusal matcher"
SCRIPT = "<script>alert('a note')</script>"


def share(name: str, rate: float, answers: int, group: Mapping[str, Any] | None = None, **facts: Any) -> Figure:
    hits = round(rate * answers)
    return share_of(name, [True] * hits + [False] * (answers - hits), group or {}, **facts)


def measured(name: str, value: float, width: float, answers: int, unit: str, **group: Any) -> Figure:
    return Figure(name, value, (value - width, value + width), answers, unit, group)


def deep_prefill(strength: float, answers: int) -> Summary:
    figures = []
    for number, arm in enumerate(ARMS):
        for depth in DEPTHS:
            rate = (
                min(1.0, max(0.0, strength - 0.11 * number)) if number == 1 else 0.9 / (1 + 0.04 * number * depth**0.6)
            )
            rate = 0.82 / (1 + 0.05 * depth) if number == 0 else rate
            note = f"{answers // 3} answers joined with a second one" if depth >= 1000 else None
            if arm == "deep-alignment LoRA" and depth == 250:
                figures.append(Figure("refused", None, None, 0, "share", {"arm": arm, "depth": depth}, MATCHER))
            else:
                figures.append(share("refused", rate, answers, {"arm": arm, "depth": depth}, judge=MATCHER, note=note))
    figures += [
        measured("leak", 24.0 - 2 * number, 3.5, answers, "tokens", arm=arm) for number, arm in enumerate(ARMS[1:5])
    ]
    draw = np.random.default_rng(5)
    leaks = {arm: np.floor(draw.exponential(8 + 9 * n, answers)).tolist() for n, arm in enumerate(ARMS[1:5])}
    return Summary(
        "deep-prefill",
        "Harmful answers forced to a depth",
        "The paper's Figure 3 and Table 1: the look-ahead and the probe refuse about as often at depth 2,500 as at the "
        "first token, where the unguarded model refuses almost never.",
        tuple(figures),
        (
            Chart(
                "line",
                "Refused or halted by forced depth",
                ("refused",),
                x="depth",
                by="arm",
                caption="The first d tokens of a stored answer are forced; the higher the better. `0` is the prompt.",
                log_x=True,
            ),
            Chart(
                "histogram", "Leak before the halt", x="leak (tokens)", caption="Tokens sent, by answer.", points=leaks
            ),
        ),
        ("At depth 0 the probe adds nothing that the model does not do by itself.",),
        (f"Sample: {answers} answers.", "Answers shorter than the depth are joined with a second one, and marked."),
    )


def attacks(shift: float, answers: int) -> Summary:
    kinds = ("stored prompts", "GCG (50 steps)", "best of 16", "attacker loop (PAIR)")
    figures = tuple(
        share(
            "attack success",
            max(0.0, base * (1 - 0.3 * n) + shift),
            answers,
            {"attack": kind, "arm": arm},
            judge="rubric",
        )
        for kind, base in zip(kinds, (0.21, 0.62, 0.71, 0.48), strict=True)
        for n, arm in enumerate(("no guard", "probe", "rethink look-ahead"))
    )
    chart = Chart("bars", "Attacks that succeed", ("attack success",), x="attack", by="arm", caption="Lower is better.")
    return Summary(
        "attacks", "Attacks", "Table 3: fewer than 3 % of attacks succeed.", figures, (chart,),
        ("Budgets are a hundredth of the paper's.",), (f"A note with markup: {SCRIPT}",),
    )  # fmt: skip


def over_refusal(rate: float, answers: int) -> Summary:
    sources = (
        "XSTest safe",
        "GSM8K",
        "MATH",
        "BBH",
        "HumanEval",
        "MMLU",
        "benign dialogue with quite a long source name",
    )
    figures = [
        share("false positives", rate * (n % 4), answers, {"source": source}) for n, source in enumerate(sources)
    ] + [share("false positives", rate, answers * 7)]
    draw = np.random.default_rng(2)
    curve = roc(draw.normal(2.2, 1, 150), draw.normal(0, 1, 150))
    charts = (
        Chart("bars", "False positives by source", ("false positives",), x="source", caption="One bar a source."),
        Chart(
            "roc", "ROC of the response-level score", points={"probe": curve}, log_x=True,
            marks={"operating point": (0.01, 0.83)}, caption="The mark is the shipped threshold.",
        ),
    )  # fmt: skip
    return Summary("over-refusal", "Over-refusal", "Table 4: no more than 1 % false positives.", tuple(figures), charts)


def separability(layers: Sequence[int], answers: int) -> Summary:
    draw = np.random.default_rng(len(layers))
    figures = []
    for layer in layers:
        for depth in (0, 5, 25, 100, 500):
            value = min(0.999, 0.5 + 0.5 * np.tanh(layer / max(layers) * 2) * (0.8 + 0.2 * np.tanh(depth / 25)))
            if layer == layers[1] and depth == 500:
                figures.append(Figure("auroc", None, None, 0, "auroc", {"layer": layer, "depth": depth}))
            else:
                low = max(0, value - 0.05)
                figures.append(
                    Figure(
                        "auroc", value, (low, min(1, value + 0.03)), answers, "auroc", {"layer": layer, "depth": depth}
                    )
                )
    figures.append(Figure("auroc", 0.53, (0.44, 0.61), answers, "auroc", {"control": "random tokens"}))
    clouds = {
        f"{kind}, {when}": draw.normal((4 * (kind == "harmful"), 3 * (when == "with header")), 1.0, (60, 2)).tolist()
        for kind in ("harmful", "benign")
        for when in ("with header", "without header")
    }
    return Summary(
        "separability", "Separability of hidden states", "Figures 2 and 4: harmful and benign states come apart.",
        tuple(figures),
        (
            Chart("heatmap", "AUROC by depth and layer", ("auroc",), x="depth", by="layer", caption="At the header."),
            Chart("scatter", "First two components", points=clouds, caption="One dot an answer, at depth 100."),
        ),
        ("Random tokens in the place of the header separate nothing.",),
    )  # fmt: skip


def interval(answers: int) -> Summary:
    steps = (5, 10, 25, 50, 100, 200)
    figures = [share("halted", 0.97 - 0.0004 * step, answers, {"interval": step}) for step in steps]
    figures += [measured("leak", 0.6 * step, 0.1 * step, answers, "tokens", interval=step) for step in steps]
    trade = {"probe": [(0.3 / step, 0.97 - 0.0004 * step) for step in steps]}
    return Summary(
        "interval", "How often to check", "Section 5.3: 25 to 100 tokens cost little.", tuple(figures),
        (
            Chart("line", "Halted and leaked by interval", ("halted", "leak"), x="interval", log_x=True),
            Chart("scatter", "What a check costs and brings", x="overhead", by="halted", points=trade,
                  marks={"25 tokens": (0.012, 0.96)}),
        ),
    )  # fmt: skip


def erosion(answers: int) -> Summary:
    steps = (0, 50, 100, 200, 300, 500)
    arms = {"no guard": 0.0035, "rethink look-ahead": 0.0012, "probe": 0.0001, "probe, base weights": 0.0}
    figures = tuple(
        share(
            "refused", max(0.02, 0.9 - step * slope), answers, {"arm": arm, "steps": step, "data": data}, judge=MATCHER
        )
        for data in ("benign", "adversarial")
        for arm, slope in arms.items()
        for step in steps
    )
    chart = Chart("line", "Refusal under fine-tuning", ("refused",), x="steps", by="arm")
    return Summary("erosion", "Fine-tuning", "Figure 7.", figures, (chart,))


def utility(answers: int) -> Summary:
    figures = [
        share("accuracy", rate, answers, {"task": task, "arm": arm})
        for task, rate in (("gsm8k", 0.34), ("mmlu", 0.42))
        for arm in ("no guard", "probe")
    ] + [measured("difference", -0.004, 0.01, answers, "share", task=task) for task in ("gsm8k", "mmlu")]
    charts = (Chart("table", "Accuracy with and without the guard", ("accuracy",), x="task", by="arm"),)
    return Summary("utility", "Utility", "Table 5: no loss.", tuple(figures), charts)


def latency() -> Summary:
    figures = [
        measured("check", base * (1 + context / 4000), 0.05, 20, "ratio", context=context, arm=arm)
        for arm, base in (("probe", 0.6), ("external guard", 14.0))
        for context in (128, 512, 2048, 8192)
    ]
    figures += [Figure("memory", 812.0, None, 0, "MiB"), Figure("layers read", 15.0, None, 0, "count")]
    chart = Chart(
        "table", "A check in decode steps", ("check",), x="context", by="arm", caption="1 is one decode step."
    )
    return Summary("latency", "What a check costs", "Section 6: half a decode step.", tuple(figures), (chart,))


def bare() -> Summary:
    return Summary(
        "causal", "The probe's direction", "Section 4.", (Figure("refused", None, None, 0),), (), ("Not run.",)
    )


def summaries(scale: float = 1.0, layers: Sequence[int] = range(4, 24, 2)) -> list[Summary]:
    n = 120
    return [
        latency(), deep_prefill(0.98 * scale, n), attacks(0.05 * (1 - scale), 50), over_refusal(0.006 / scale, 200),
        utility(200), separability(list(layers), 200), interval(n), erosion(60), bare(),
    ]  # fmt: skip


def manifest(model: str, /, **facts: Any) -> dict[str, Any]:
    return {
        "anydepth": "0.1.0",
        "model": {"name": model, "fingerprint": "3f2a9c" * 6, "revision": None, "layers": 24},
        "probe": {
            "given": False,
            "reads": ["14.input_layernorm"],
            "name": f"{model.rpartition('/')[2].lower()}.safetensors",
            "threshold": 0.62,
            "sha256": "ab12" * 16,
        },
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "options": EvalOptions(seed=7, limit=120, arms=("probe",)).record(),
        "data": {"pairs_deep_validation": {"rows": 400, "sha256": "0123456789abcdef" * 4}},
        "judge": MATCHER,
        "command": f"anydepth eval {model} --suite deep-prefill --data-dir data -o runs/{model.rpartition('/')[2]}",
        "begun": "2026-01-14T09:12:00+00:00",
        "suites": {"deep-prefill": {"seconds": 812.4, "finished": "2026-01-14T09:25:32+00:00"}},
        "machine": {"platform": "Linux", "cores": 2},
    } | facts


def write_run(folder: Path, found: Sequence[Summary], facts: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    record = {"suites": {summary.suite: summary.record() for summary in found}}
    (folder / "summary.json").write_text(json.dumps(record), "utf-8")
    (folder / "manifest.json").write_text(json.dumps(manifest("org/tiny-0.5b") if facts is None else facts), "utf-8")
    return folder
