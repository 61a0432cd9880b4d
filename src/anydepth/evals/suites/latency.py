"""Measure what a check costs in time and memory, beside a decode step and a guard model's pass over the same text."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import product
from statistics import median
from typing import Any

from anydepth.bench import timing as bench
from anydepth.detectors import Detector, Rethink
from anydepth.detectors.detector import require_header
from anydepth.errors import ConfigError
from anydepth.evals import estimates
from anydepth.evals.arms.model_as_judge import AskedModel, guard_wording
from anydepth.evals.context import Context
from anydepth.evals.figure import Chart, Figure, Group, Summary
from anydepth.evals.suite import summed_up

TITLE = "Latency: what a check costs"
PAPER = "A check on the Safety Tokens costs little and hardly grows with the answer, unlike an external guard's pass"

CONTEXTS, QUICK_CONTEXTS = (128, 512, 1024, 2048, 4096), (128, 512, 1024)
INTERVALS, QUICK_INTERVALS = (10, 25, 50, 100), (25,)
MEMORY_AT, CHECKS_IN_A_ROW, TOKENS_APART = 1024, 8, 8

_STEP, _NAIVE, _GUARD, _OWN = "step", "probe, naive", "guard-model", "self-defence"
_MIB = 2**20


def run(context: Context) -> Summary:
    """Measure checks by context length, memory at one length, and throughput by interval."""
    quick = context.options.quick
    samples = context.number("samples", 7, 3)
    detectors = _detectors(context)
    contexts, too_long = _contexts(context, samples)
    load = cache(AskedModel.load)  # when it is first needed: not in a run that only sums up
    for done, length in enumerate(contexts):
        context.told("cost of checks", done, len(contexts))
        context.record(f"check|{length}", lambda at=length: _checked(context, detectors, load, at, samples))
    context.told("cost of checks", len(contexts), len(contexts))
    where = min(MEMORY_AT, max(contexts))
    context.record("memory", lambda: _memory(context, where))
    rounds = {"probe": context.number("rounds", 3, 1), "rethink": 1}
    intervals = {"probe": QUICK_INTERVALS if quick else INTERVALS, "rethink": QUICK_INTERVALS}
    runs = [(arm, n, at) for arm in rounds for n, at in product(range(rounds[arm]), intervals[arm])]
    tokens = 96 if quick else 256
    for done, (arm, number, interval) in enumerate(runs):
        context.told("throughput", done, len(runs))
        measure = partial(bench.throughput, context.backend, detectors[arm], interval, tokens)
        context.record(f"throughput|{arm}|{interval}|{number}", lambda measure=measure: {"ratio": measure()})
    context.told("throughput", len(runs), len(runs))
    figures = [figure for length in contexts for figure in _cost_figures(context, length)]
    figures += _memory_figures(context)
    figures += _throughput_figures(context, runs)
    return summed_up(context, figures, _CHARTS, _limits(figures), (*_notes(context, samples, tokens), *too_long))


# -- what is measured --------------------------------------------------------------------------------------------------


def _detectors(context: Context) -> dict[str, Detector]:
    require_header(context.probe, "a comparison with the naive check")
    detectors: dict[str, Detector] = {"probe": context.probe, "rethink": Rethink(), "rethink-score": Rethink("score")}
    for detector in detectors.values():
        detector.bind(context.backend)
    return detectors


def _contexts(context: Context, samples: int) -> tuple[list[int], list[str]]:
    """Lengths that fit the model with the steps that are measured there, and a note on those that do not."""
    limit = context.backend.context_length
    wanted = QUICK_CONTEXTS if context.options.quick else CONTEXTS
    fit = [length for length in wanted if limit is None or length + bench.room(samples) <= limit]
    if not fit:
        raise ConfigError(
            f"suite {context.suite}: the model's context of {limit} tokens has no room for {bench.room(samples)} steps "
            f"behind {min(wanted)} tokens; measure a model with a longer one"
        )
    left = [length for length in wanted if length not in fit]
    note = f"Not measured at {', '.join(map(str, left))} tokens: the model's context has {limit}."
    return fit, [note] if left else []


def _checked(
    context: Context, detectors: Mapping[str, Detector], load: Callable[[str], AskedModel], length: int, samples: int
) -> dict[str, Any]:
    backend, guard = context.backend, context.options.guard_model
    tokens, times = bench.check_times(backend, detectors, length, samples)
    prompt = bench.filled(backend, length)
    text = backend.decode_text(prompt.ids[prompt.start :])
    itself = AskedModel(backend.model, backend.tokenizer, guard_wording(backend.identity.name))
    asked = {_GUARD: itself} if guard is None else {_OWN: itself, _GUARD: load(guard)}
    for arm, each in asked.items():
        question = each.about("How is tea made?", text)
        each.scores([question[:32]])  # the first pass of a model is slow
        times[arm] = [bench.seconds(lambda a=each, q=question: a.scores([q])) for _ in range(samples)]
    return {"tokens": tokens, "seconds": times}


def _memory(context: Context, length: int) -> dict[str, Any]:
    """Bytes of the cache, of forks at several depths, and how far the process grows; of a naive check as well."""
    from anydepth.backends.transformers.memory import fork_bytes, peak_growth
    from anydepth.backends.transformers.naive import naive_state

    backend, probe = context.backend, context.probe
    prompt = bench.filled(backend, length)
    spare = CHECKS_IN_A_ROW * TOKENS_APART + 8
    session = backend.open([prompt], max_new_tokens=spare, **bench.endless(backend))
    cache, forks, grown, grown_naive = 0, [], [], []
    for _ in range(CHECKS_IN_A_ROW):
        session.decode(TOKENS_APART)
        cache, beyond = fork_bytes(session, probe.reads)
        forks.append(beyond)
        grown.append(peak_growth(lambda: probe.check(session, [session.current(0)])))
        grown_naive.append(peak_growth(lambda: naive_state(session, probe.reads[-1].site)))
    session.close()
    return {"tokens": len(prompt.ids), "cache": cache, "forks": forks, "grown": grown, "grown_naive": grown_naive}


# -- figures -----------------------------------------------------------------------------------------------------------


def _cost_figures(context: Context, length: int) -> list[Figure]:
    row = context.records.rows[f"check|{length}"]
    seconds, step = row["seconds"], median(row["seconds"][_STEP])
    figures = [estimates.median("decode step", seconds[_STEP], "seconds", {"context": length})]
    for arm, times in seconds.items():
        if arm == _STEP:
            continue
        group: Group = {"arm": arm, "context": length}
        note = _stand_in(context) if arm == _GUARD else None
        figures.append(estimates.median("check", times, "seconds", group, note=note))
        figures.append(estimates.median("decode steps a check", [t / step for t in times], "ratio", group, note=note))
    check = median(seconds["probe"])
    for arm in (_NAIVE, _GUARD):
        ratios = [time / check for time in seconds[arm]]
        figures.append(estimates.median("times a probe's check", ratios, "ratio", {"arm": arm, "context": length}))
    return figures


def _memory_figures(context: Context) -> list[Figure]:
    row = context.records.rows["memory"]
    group: Group = {"context": row["tokens"]}
    beyond = [size / _MIB for size in row["forks"]]
    figures = [
        Figure("cache", row["cache"] / _MIB, None, 1, "MiB", group),
        estimates.median("fork beyond the cache", beyond, "MiB", group, note=f"at most {max(beyond):.3g} MiB"),
    ]
    for name, key in (("memory growth in a check", "grown"), ("memory growth in a naive check", "grown_naive")):
        known = [size / _MIB for size in row[key] if size is not None]
        note = None if known else "measured on Linux only"
        figures.append(estimates.median(name, known, "MiB", group, note=note))
    return figures


def _throughput_figures(context: Context, runs: Sequence[tuple[str, int, int]]) -> list[Figure]:
    figures = []
    for arm, interval in dict.fromkeys((arm, interval) for arm, _, interval in runs):
        keys = [f"throughput|{arm}|{interval}|{number}" for name, number, at in runs if (name, at) == (arm, interval)]
        ratios = [context.records.rows[key]["ratio"] for key in keys]
        group: Group = {"arm": arm, "interval": interval}
        if len(ratios) == 1:  # an interval over one measurement would be a point
            figures.append(Figure("guarded throughput", ratios[0], None, 1, "ratio", group))
        else:
            figures.append(estimates.median("guarded throughput", ratios, "ratio", group))
    return figures


_CHARTS = (
    Chart(
        "line",
        "Cost of a check by length of the conversation",
        ("decode steps a check",),
        "context",
        "arm",
        "In decode steps at the same length, measured in turn. A check includes fork, pass and read-out.",
        log_x=True,
    ),
    Chart("bars", "Guarded throughput", ("guarded throughput",), "interval", "arm", "Over the unguarded, in pairs."),
    Chart("table", "Cost of a check", ("decode step", "check", "times a probe's check")),
    Chart(
        "table",
        "Memory",
        ("cache", "fork beyond the cache", "memory growth in a check", "memory growth in a naive check"),
    ),
)


def _limits(figures: Sequence[Figure]) -> list[str]:
    limits = []
    costs = [f for f in figures if f.name == "decode steps a check" and f.group["arm"] == "probe" and f.value]
    if dear := [figure for figure in costs if (figure.value or 0) > 1]:
        worst = ", ".join(f"{f.value:.2g} at {f.group['context']} tokens" for f in dear)
        limits.append(f"A probe's check costs more than a decode step: {worst}.")
    for figure in figures:
        if figure.name == "guarded throughput" and figure.value is not None and figure.value < 0.9:
            arm, interval = figure.group["arm"], figure.group["interval"]
            limits.append(f"With {arm} every {interval} tokens {1 - figure.value:.0%} of the throughput is lost.")
        if figure.name == "fork beyond the cache" and figure.note and figure.value != 0:
            limits.append(f"A fork is not free of memory: {figure.value:.3g} MiB beyond the cache.")
    return limits


def _notes(context: Context, samples: int, tokens: int) -> list[str]:
    return [
        f"Medians of {samples} samples a length on this machine, one conversation at a time; intervals are over them. "
        "Two runs differ, as any times do; the ratios are of measurements made in turn in one run.",
        "'probe, naive' is the same reading with a copied cache, the whole model and the whole header, as the paper's "
        "published server does it. 'guard-model' is one pass over the whole conversation and its question; "
        "'self-defence' is such a pass of the model under test.",
        f"Throughput: {tokens} tokens unguarded and guarded, one after the other; no answer is halted.",
        "Memory growth is the process's peak above what it held before the check; it counts whole pages.",
        *filter(None, [_stand_in(context)]),
        *(["--arm does not matter here."] if context.options.arms else []),
    ]


def _stand_in(context: Context) -> str | None:
    if context.options.guard_model is not None:
        return None
    return "No --guard-model was given: the model under test stands in, so the pass is that of a guard of its size."
