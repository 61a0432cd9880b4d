"""What is measured: what each part is estimated to take, and its figures."""

from collections.abc import Callable
from statistics import median

from anydepth.bench.bench_record import BenchRow, Report
from anydepth.bench.budget import Level
from anydepth.bench.rates import Rates
from anydepth.bench.timing import (
    PACKED_DEPTHS,
    PACKED_LENGTH,
    PACKED_TOKENS,
    QUESTION_TOKENS,
    STEPS_A_SAMPLE,
    check_times,
    packed_speedups,
    riding_times,
    room,
    throughputs,
)
from anydepth.detectors import Detector, Rethink

_NEARLY = 0.9


class CheckCost:
    """The cost of a check at one length."""

    def __init__(self, report: Report, rates: Rates, samples: int, context: int) -> None:
        self.name, self.context = f"cost of a check at {context} tokens", context
        self._report, self._rates = report, rates
        self.levels = [*(Level(each, STEPS_A_SAMPLE) for each in (7, 5, 3, 2, 1) if each <= samples), Level(1, 4)]
        # A model's context is often the very length asked for; a little less with the steps in it is near enough.
        self.length = round(_NEARLY * context) + room(samples)

    def estimate(self, level: Level) -> float:
        """Prefill, steps to warm up, and the samples."""
        rate = self._rates.at(self.context)
        sample = level.tokens * rate.step + rate.check + rate.naive
        return rate.prefill * self.context + level.tokens * rate.step + level.samples * sample

    def measure(self, level: Level, enough: Callable[[], bool]) -> Level:
        """Add the medians to the result, and to what is known of the machine."""
        backend, result = self._report.backend, self._report.result
        probe = {"check": self._report.probe}
        tokens, times = check_times(backend, probe, self.context, level.samples, steps=level.tokens, enough=enough)
        step, check, naive = (median(times[name]) for name in ("step", "check", "check, naive"))
        self._rates.add(tokens, step=step, check=check, naive=naive)
        key, samples = str(self.context), len(times["step"])
        result["seconds"][key] = {"tokens": tokens, "samples": samples, "step": step, "check": check, "naive": naive}
        result["check_ratio"][key] = check / step
        result["naive_over_check"][key] = naive / check
        at = f"{tokens} tokens"
        self._report.tell(
            BenchRow("a check costs", at, f"{check / step:.2f} decode steps"),
            BenchRow("the naive way costs", at, f"{naive / check:.1f} times a check"),
        )
        return Level(samples, level.tokens)


class RideCost:
    """The cost of a check that rides in the decode step, at one length."""

    def __init__(self, report: Report, rates: Rates, samples: int, context: int) -> None:
        self.name, self.context = f"cost of a check that rides, at {context} tokens", context
        self._report, self._rates = report, rates
        self.levels = [Level(3 * each, 1) for each in (7, 5, 3, 2, 1) if each <= samples]
        self.length = round(_NEARLY * context) + room(3 * samples, 2)

    def estimate(self, level: Level) -> float:
        """Prefill, and per sample two steps and what the check adds."""
        rate = self._rates.at(self.context)
        return rate.prefill * self.context + (level.samples + 1) * (2 * rate.step + rate.check)

    def measure(self, level: Level, enough: Callable[[], bool]) -> Level:
        """Add the median of what a check adds to the step that follows it."""
        context = round(_NEARLY * self.context)
        steps, rides = riding_times(self._report.backend, self._report.probe, context, level.samples, enough=enough)
        share = median(with_check / alone - 1 for alone, with_check in zip(steps, rides, strict=True))
        self._report.result["riding_ratio"][str(self.context)] = share
        self._report.tell(BenchRow("a check that rides costs", f"{context} tokens", f"{share:.2f} decode steps"))
        return Level(len(steps), level.tokens)


_RIDING = {"never": ("guarded_throughput", "probe"), "always": ("guarded_throughput_riding", "probe, riding")}


class Throughput:
    """Guarded over unguarded tokens per second, once.

    Args:
        report: Where the ratio goes.
        rates: What is known of the machine.
        detector: What checks.
        interval: Tokens between two checks.
        tokens: Tokens of the answer at most.
        number: Number of the round, from 1.
        rides: Measure checks that ride, too, in turn with those on forks.
    """

    def __init__(
        self,
        report: Report,
        rates: Rates,
        detector: Detector,
        interval: int,
        tokens: int,
        *,
        number: int = 1,
        rides: bool = False,
    ) -> None:
        self._report, self._rates, self.number = report, rates, number
        self._detector, self._interval = detector, interval
        self._ways = ("never", "always") if rides else ("never",)
        who = "look-ahead" if isinstance(detector, Rethink) else "probe"
        self.name = f"throughput with the {who}, a check every {_plural(interval)}"
        self.name += f", round {number}" if number > 1 else ""
        # An answer with fewer tokens than the interval would be checked at its ends only.
        fewest = min(tokens, interval)
        lengths = [each for each in (512, 256, 128, 64, 32) if fewest <= each <= tokens] or [tokens]
        self.levels = [Level(1, each) for each in lengths]
        self.length = QUESTION_TOKENS + lengths[-1]

    def estimate(self, level: Level) -> float:
        """The answer without checks and each way, and its checks: one an interval, and a few more at its ends."""
        rate, ways = self._rates.at(QUESTION_TOKENS + level.tokens), len(self._ways)
        check = rate.check
        if isinstance(self._detector, Rethink):
            check += self._detector.max_new_tokens * rate.step
        checks = level.tokens / self._interval + min(self._interval, level.tokens).bit_length() + 2
        return (1 + ways) * (rate.prefill * QUESTION_TOKENS + level.tokens * rate.step) + ways * checks * check

    def measure(self, level: Level, enough: Callable[[], bool]) -> Level:
        """Add the ratios to the result, the median where there are several rounds; it cannot be ended early."""
        ratios = throughputs(self._report.backend, self._detector, self._interval, level.tokens, self._ways)
        looks = isinstance(self._detector, Rethink)
        for way, ratio in zip(self._ways, ratios, strict=True):
            self._add(*(("guarded_throughput_rk", "look-ahead") if looks else _RIDING[way]), ratio, level.tokens)
        return level

    def _add(self, key: str, who: str, ratio: float, tokens: int) -> None:
        ratios = self._report.ratios.setdefault((key, self._interval), [])
        ratios.append(ratio)
        interval, share = str(self._interval), median(ratios)
        self._report.result[key][interval] = share
        self._report.result["answer_tokens"][key].setdefault(interval, []).append(tokens)
        count = f" ({len(ratios)} rounds)" if len(ratios) > 1 else ""
        at = f"every {_plural(self._interval)}"
        self._report.tell(BenchRow(f"guarded throughput, {who}", at, f"{share:.1%} of unguarded{count}"))


def _plural(interval: int) -> str:
    return "token" if interval == 1 else f"{interval} tokens"


class PackedScan:
    """How much faster the packed scan is than forks."""

    name = f"scan of {PACKED_TOKENS} tokens at {PACKED_DEPTHS} depths"
    length = PACKED_LENGTH

    def __init__(self, report: Report, rates: Rates) -> None:
        self._report, self._rates = report, rates
        self.levels = [Level(2, PACKED_TOKENS), Level(1, PACKED_TOKENS)]

    def estimate(self, level: Level) -> float:
        """The text three times; at each depth a naive check, one of ours, and feeding the text up to there twice."""
        rate = self._rates.at(PACKED_LENGTH)
        text = 3 * PACKED_LENGTH * rate.prefill + PACKED_DEPTHS * (rate.naive + rate.check + 2 * rate.step)
        return level.samples * text

    def measure(self, level: Level, enough: Callable[[], bool]) -> Level:
        """Add the medians over the rounds to the result."""
        naive, own = packed_speedups(self._report.backend, self._report.probe, level.samples)
        self._report.result |= {"packed_speedup": median(naive), "packed_over_own_forks": median(own)}
        at = f"{PACKED_TOKENS} tokens, {PACKED_DEPTHS} depths"
        self._report.tell(
            BenchRow("packed scan", at, f"{median(naive):.1f} times as fast as fork by fork"),
            BenchRow("packed scan", at, f"{median(own):.1f} times as fast as anydepth's own forks"),
        )
        return level
