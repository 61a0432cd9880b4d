"""Measure what a check costs on this machine, as ratios within one run.

Every figure is a ratio of two things measured in turn, so that it can be compared between machines; a check is measured
whole: fork, forward pass, read-out and score.
"""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

import anydepth
from anydepth.backends.base import Read, Site
from anydepth.config import GuardConfig
from anydepth.detectors import Detector, LinearProbe, ProbeCard, Rethink, declares_reads, find_shipped
from anydepth.errors import ConfigError
from anydepth.guard import Guard
from anydepth.policy import Cusum
from anydepth.scan import scan_answer
from anydepth.schedule import Every, scheduled_depths
from anydepth.template import Prompt

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend

FILLER = "The kettle is filled with fresh water, and the leaves are left in the pot for three minutes. "
PACKED_TOKENS, PACKED_DEPTHS = 600, 23
STEPS_A_SAMPLE = 16


@dataclass(frozen=True, slots=True)
class Effort:
    """How often each thing is measured, and on how many tokens."""

    samples: int
    rounds: int
    tokens: int


FULL, QUICK = Effort(samples=7, rounds=2, tokens=512), Effort(samples=3, rounds=1, tokens=128)


def run(
    model: str,
    *,
    contexts: Sequence[int] = (128, 512, 2048, 8192),
    intervals: Sequence[int] = (10, 25, 50, 100),
    probe: str | None = None,
    quick: bool = False,
    progress: Callable[[str], None] = print,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Measure `model` and return the figures.

    Returns:
        `check_ratio` {context: decode steps a check costs}, `naive_over_check` {context: factor}, `guarded_throughput`
        {interval: fraction of the unguarded throughput, linear probe}, `guarded_throughput_rk` (the same, look-ahead),
        `packed_speedup` (packed scan of a finished answer over advancing a cache and forking it at each depth with the
        whole model), `packed_over_own_forks` (the same over anydepth's own forks, which end at the probe's block), and
        what they were measured with. The last two are None where the model cannot be packed.
    """
    from anydepth.backends.transformers import load

    effort = QUICK if quick else FULL
    progress(f"loading {model}")
    backend = load(model, dtype=dtype)
    detector = LinearProbe.load(probe) if probe is not None else find_shipped(backend) or _blank_probe(backend)
    detector.bind(backend)
    costs = {str(context): _check_cost(backend, detector, context, effort, progress) for context in contexts}
    return {
        "check_ratio": {context: cost["check"] / cost["step"] for context, cost in costs.items()},
        "naive_over_check": {context: cost["naive"] / cost["check"] for context, cost in costs.items()},
        "guarded_throughput": _throughput(backend, detector, intervals, effort, effort.rounds, progress),
        "guarded_throughput_rk": _throughput(backend, Rethink(), intervals, effort, 1, progress),
        **_packed_speedup(backend, detector, effort, progress),
        "seconds": costs,
        "answer_tokens": effort.tokens,
        "model": {"name": backend.identity.name, "layers": backend.identity.num_layers, "dtype": dtype},
        "probe": {"reads": [str(read) for read in detector.reads], "header_tokens": len(detector.card.probe_ids)},
        "machine": _machine(),
        "versions": {"anydepth": anydepth.__version__, **{name: version(name) for name in ("torch", "transformers")}},
    }


def _blank_probe(backend: "TransformersBackend") -> LinearProbe:
    """A probe of zeros at the middle of the model: what it says is void, what it costs is not."""
    header = backend.header
    card = ProbeCard(
        model=backend.identity,
        header_ids=header.ids,
        reads=(Read(Site(backend.identity.num_layers // 2), header.read_index),),
        template_digest=backend.template.digest,
    )
    return LinearProbe(np.zeros(backend.identity.hidden_size, np.float32), 0.0, card)


def _check_cost(
    backend: "TransformersBackend", probe: LinearProbe, context: int, effort: Effort, progress: Callable[[str], None]
) -> dict[str, float]:
    """Median seconds of a decode step, a check and a naive check at about `context` tokens."""
    progress(f"cost of a check at {context} tokens")
    tokens, times = check_times(backend, {"check": probe}, context, effort.samples)
    times["naive"] = times.pop("check, naive")
    return {"tokens": tokens, **{name: median(values) for name, values in times.items()}}


def check_times(
    backend: "TransformersBackend", detectors: Mapping[str, Detector], context: int, samples: int
) -> tuple[int, dict[str, list[float]]]:
    """Seconds of a decode step and of a check, measured in turn `samples` times, at about `context` tokens.

    Args:
        backend: The model.
        detectors: What checks, bound to the model, by name.
        context: Length of the conversation; less where the model's context has no room for the steps.
        samples: How often.

    Returns:
        The length in tokens, and one number a sample of `step`, of each detector's check by its name and, of a probe,
        of `NAME, naive`: its check without any of our savings.
    """
    from anydepth.backends.transformers.naive import naive_state

    spare = room(samples)
    prompt = filled(backend, min(context, (backend.context_length or context + spare) - spare))
    session = backend.open([prompt], max_new_tokens=spare, **endless(backend))
    session.decode(STEPS_A_SAMPLE)
    times: dict[str, list[float]] = {"step": [], **{name: [] for name in detectors}}
    for _ in range(samples):
        times["step"].append(seconds(lambda: session.decode(STEPS_A_SAMPLE)) / STEPS_A_SAMPLE)
        for name, each in detectors.items():
            times[name].append(seconds(lambda d=each: d.check(session, [session.current(0)])))
    # Afterwards: a naive check copies and frees the whole cache, which slows down whatever comes next.
    for name, each in detectors.items():
        if declares_reads(each):
            site = each.reads[-1].site
            times[f"{name}, naive"] = [seconds(lambda s=site: naive_state(session, s)) for _ in range(samples)]
    session.close()
    return len(prompt.ids), times


def room(samples: int) -> int:
    """How many tokens the decode steps of so many samples take."""
    return STEPS_A_SAMPLE * (samples + 1) + 8


def _throughput(
    backend: "TransformersBackend",
    detector: Detector,
    intervals: Sequence[int],
    effort: Effort,
    rounds: int,
    progress: Callable[[str], None],
) -> dict[str, float]:
    """Guarded over unguarded tokens a second, by interval: the median over rounds that measure both."""
    found: dict[str, list[float]] = {str(interval): [] for interval in intervals}
    for number in range(rounds):
        progress(f"throughput with {detector.name}, round {number + 1} of {rounds}")
        for interval in intervals:
            found[str(interval)].append(throughput(backend, detector, interval, effort.tokens))
    return {interval: median(ratios) for interval, ratios in found.items()}


def throughput(backend: "TransformersBackend", detector: Detector, interval: int, tokens: int) -> float:
    """Guarded over unguarded tokens a second, measured one after the other, of an answer of `tokens` tokens."""
    prompt = filled(backend, 64)
    plain = seconds(lambda: backend.unguarded([prompt], max_new_tokens=tokens, **endless(backend)))
    guard = Guard.from_backend(backend, detector, policy=Cusum(threshold=1e9), schedule=Every(interval))
    return plain / seconds(lambda: _answer(guard, prompt, tokens))


def _answer(guard: Guard, prompt: Prompt, tokens: int) -> None:
    generated = 0
    for event in guard.paced(prompt, max_new_tokens=tokens, **endless(guard.backend)):  # pyright: ignore
        generated += len(getattr(event, "token_ids", ()))
    if generated != tokens:
        raise ConfigError(f"the guarded answer has {generated} tokens, not {tokens}; the comparison would be unfair")


def _packed_speedup(
    backend: "TransformersBackend", probe: LinearProbe, effort: Effort, progress: Callable[[str], None]
) -> dict[str, float | None]:
    """How many times faster the packed scan is than two ways of forking at each depth."""
    from anydepth.backends.transformers.naive import naive_scan

    if backend.describe()["packed_reason"] is not None:
        return {"packed_speedup": None, "packed_over_own_forks": None}
    progress(f"scan of {PACKED_TOKENS} tokens at {PACKED_DEPTHS} depths")
    prompt = filled(backend, PACKED_TOKENS + 40, answer=PACKED_TOKENS)
    config = GuardConfig(schedule=Every(-(-PACKED_TOKENS // (PACKED_DEPTHS - 1)), doubling=False))
    depths = scheduled_depths(config.schedule, PACKED_TOKENS)
    question, answer = Prompt(prompt.ids[: prompt.start]), prompt.ids[prompt.start :]
    naive, own = [], []
    for _ in range(max(effort.rounds, 2)):
        packed = seconds(lambda: scan_answer(backend, probe, config, prompt))
        own.append(seconds(lambda: scan_answer(backend, probe, config, prompt, packed=False)) / packed)
        naive.append(seconds(lambda: naive_scan(backend, question, answer, depths, probe.reads[-1].site)) / packed)
    return {"packed_speedup": median(naive), "packed_over_own_forks": median(own)}


def filled(backend: "TransformersBackend", length: int, *, answer: int | None = None) -> Prompt:
    """A conversation of `length` tokens, the last of which (`answer`, or all after the question) are a prefill."""
    start = backend.template.prompt("How is tea made?")
    filler = backend.tokenizer.encode(FILLER * 8, add_special_tokens=False)
    wanted = answer if answer is not None else max(1, length - len(start.ids))
    filled = (filler * (wanted // len(filler) + 1))[:wanted]
    return Prompt((*start.ids, *filled), prefill=wanted)


def endless(backend: "TransformersBackend") -> dict[str, Any]:
    """Options of greedy answers that never end by themselves."""
    return {"do_sample": False, "suppress_tokens": sorted(backend.end_tokens({}))}


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _machine() -> dict[str, Any]:
    import torch

    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }


def table(result: Mapping[str, Any]) -> Table:
    """The figures as a table for people."""
    grid = Table("what", "at", "figure", title=f"{result['model']['name']}, {result['model']['dtype']}")
    for context, ratio in result["check_ratio"].items():
        grid.add_row("a check costs", f"{context} tokens", f"{ratio:.2f} decode steps")
    for context, factor in result["naive_over_check"].items():
        grid.add_row("the naive way costs", f"{context} tokens", f"{factor:.1f} times a check")
    for key, name in (("guarded_throughput", "probe"), ("guarded_throughput_rk", "look-ahead")):
        for interval, share in result[key].items():
            grid.add_row(f"guarded throughput, {name}", f"every {interval} tokens", f"{share:.1%} of unguarded")
    for key, name in (("packed_speedup", "fork by fork"), ("packed_over_own_forks", "anydepth's own forks")):
        speedup = result[key]
        figure = "not possible for this model" if speedup is None else f"{speedup:.1f} times as fast as {name}"
        grid.add_row("packed scan", f"{PACKED_TOKENS} tokens, {PACKED_DEPTHS} depths", figure)
    return grid
