"""Measure a model within a time budget, and tell each figure as it comes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anydepth.backends.protocol import Read, Site
from anydepth.bench.bench_record import BenchRow, Report
from anydepth.bench.budget import Measurement, Standing, about, expected, spend
from anydepth.bench.parts import CheckCost, PackedScan, RideCost, Throughput
from anydepth.bench.rates import Rates, first_rate
from anydepth.detectors import LinearProbe, ProbeCard, Rethink, find_shipped
from anydepth.errors import ConfigError

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured at most.

    Attributes:
        seconds: What the measuring may take, loading the model aside.
        samples: Samples of a check at each length.
        tokens: Tokens of an answer whose throughput is measured.
        rounds: How often the throughput with the probe is measured.
    """

    seconds: float
    samples: int
    tokens: int
    rounds: int


FULL = Effort(seconds=560, samples=7, tokens=512, rounds=2)
QUICK = Effort(seconds=160, samples=3, tokens=128, rounds=1)


def run(
    model: str | None,
    *,
    config: Path | None = None,
    contexts: Sequence[int] = (128, 512, 2048, 8192),
    intervals: Sequence[int] = (1, 5, 25),
    probe: str | None = None,
    quick: bool = False,
    progress: Callable[[str], None] = print,
    came: Callable[[Sequence[BenchRow], Mapping[str, Any]], None] = lambda rows, result: None,
    dtype: str = "float32",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Measure `model` within the budget of `FULL` or `QUICK` and return the figures.

    Args:
        model: Hub id or folder; None with `config`.
        config: A `config.json`: a model of random weights is made of it and measured, see `random_weights.build`.
        contexts: Lengths of the conversation in tokens at which a check is timed.
        intervals: Tokens between two checks at which the throughput is measured.
        probe: A probe file; None takes the one shipped for the model, or one of zeros. With trained Safety Tokens in it
            the naive way and the look-ahead append the header all the same.
        quick: Spend the smaller budget.
        progress: Called with one line: what is done next, and how long all that is left will take.
        came: Called with each figure as it comes, and the result so far.
        dtype: Number format of the weights, as `load` takes it.
        clock: The clock of the budget, in seconds.

    Returns:
        `check_ratio` {context: decode steps a check costs}, `riding_ratio` {the same, of a check that rides in the
        decode step: what it adds}, `naive_over_check` {context: factor}, `guarded_throughput`
        {interval: fraction of the unguarded throughput, linear probe with checks on forks},
        `guarded_throughput_riding` (the same, checks that ride), `guarded_throughput_rk` (the same, look-ahead),
        `packed_speedup` (packed scan of a finished answer over advancing a cache and forking it at each depth with the
        whole model), `packed_over_own_forks` (the same over anydepth's own forks, which end at the probe's block), what
        they were measured with, `cut` (one sentence per measurement that was left out, or made less thoroughly, to stay
        within `budget_seconds`), `took_seconds`, and `finished`. What was left out has no figure; of the packed scan,
        None.

    Raises:
        ConfigError: Neither or both of `model` and `config` are given, or no model can be made of the config.
        ModelError: The model cannot be loaded.
        ProbeMismatch: The probe belongs to another model.
    """
    from anydepth.backends.transformers import load
    from anydepth.bench.random_weights import build

    effort = QUICK if quick else FULL
    if (model is None) == (config is None):
        raise ConfigError(f"model is {model!r} and config is {config}; give one of them")
    progress(f"making a model of random weights from {config}" if config is not None else f"loading {model}")
    backend = build(config, dtype) if config is not None else load(str(model), dtype=dtype, ride="auto")
    detector = LinearProbe.load(probe) if probe is not None else find_shipped(backend) or _blank_probe(backend)
    detector.bind(backend)
    backend.prove(detector.needs, detector.reads)  # says whether checks can ride
    backend.ride = "never"
    begun = clock()
    report = Report(backend, detector, dtype, effort.seconds, came)
    progress("timing a decode step")
    rate = first_rate(backend, detector)
    rates = Rates(rate)
    measurements, impossible = _measurements(report, effort, rates, contexts, intervals)
    report.result["cut"] += impossible
    report.tell()
    took = clock() - begun
    progress(
        f"a decode step takes {about(rate.step)}, a check {about(rate.check)}: the measuring takes about "
        f"{about(expected(measurements, effort.seconds - took))}, at most about {about(effort.seconds)}"
    )
    report.result["cut"] += spend(measurements, effort.seconds - took, clock, lambda stands: progress(_line(stands)))
    report.result |= {"took_seconds": clock() - begun, "finished": True}
    report.tell()
    return report.result


def _line(stands: Standing) -> str:
    return f"{stands.number}/{stands.total} {stands.name}; about {about(stands.left)} left"


def _measurements(
    report: Report, effort: Effort, rates: Rates, contexts: Sequence[int], intervals: Sequence[int]
) -> tuple[list[Measurement], list[str]]:
    """What is measured, in order, and one sentence per thing that the model's context has no room for."""
    limit = report.backend.context_length or 10**9
    limit -= len(report.backend.header.ids) + len(report.backend.header.answer_ids)
    checks = [CheckCost(report, rates, effort.samples, context) for context in sorted(set(contexts))]
    stays = report.backend.ride_refusal({})
    rides = [] if stays else [RideCost(report, rates, effort.samples, context) for context in sorted(set(contexts))]
    rarest_first = sorted(set(intervals), reverse=True)  # fewer checks take less time
    first = [
        Throughput(report, rates, detector, at, effort.tokens, rides=detector is report.probe and not stays)
        for detector in (report.probe, Rethink())  # the look-ahead, the dearest, is measured in one round only
        for at in rarest_first
    ]
    further = [
        Throughput(report, rates, report.probe, at, effort.tokens, number=number, rides=not stays)
        for number in range(2, effort.rounds + 1)
        for at in rarest_first
    ]
    packed = PackedScan(report, rates)
    why = report.backend.describe()["packed_reason"]
    everything = [*checks, *rides, *first, *([packed] if why is None else []), *further]
    cuts = [f"{packed.name}: not possible for this model, {why}"] if why else []
    cuts += [f"checks that ride in the decode step: not possible for this model, {stays}"] if stays else []
    cuts += [
        f"{each.name}: left out, it takes {each.length} tokens and the model's context has room for {limit}"
        for each in everything
        if each.length > limit
    ]
    return [each for each in everything if each.length <= limit], cuts


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
