"""`bench.run` on a tiny model, and its planning for machines of any speed by a scripted clock."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from anydepth import bench
from anydepth.backends.protocol import Read, Site
from anydepth.backends.transformers import TransformersBackend, load
from anydepth.bench import benchmark as suite
from anydepth.bench import parts
from anydepth.bench import timing as measure
from anydepth.bench.bench_record import THROUGHPUTS, BenchRow, Report
from anydepth.bench.benchmark import Effort
from anydepth.bench.budget import spend
from anydepth.bench.random_weights import build
from anydepth.bench.rates import PartTimes, Rates
from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.errors import ConfigError
from tests.tiny import tiny_model, tiny_tokenizer

INTERVALS = (1, 5, 25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("Llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@dataclass
class Ticking:
    """A clock that moves on by `step` whenever it is read."""

    step: float
    now: float = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_a_small_run_measures_everything_and_tells_it_as_it_comes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "FULL", Effort(seconds=1e6, samples=1, tokens=32, rounds=2))
    lines: list[str] = []
    seen: list[tuple[tuple[BenchRow, ...], bool, int]] = []

    def came(rows: Sequence[BenchRow], result: Mapping[str, Any]) -> None:
        figures = sum(len(result[key]) for key in ("check_ratio", "riding_ratio", *THROUGHPUTS))
        seen.append((tuple(rows), result["finished"], figures))

    result = bench.run(
        str(folder), contexts=[64, 8192], intervals=[16], progress=lines.append, came=came, clock=Ticking(0.0)
    )
    assert result["finished"] and result["budget_seconds"] == 1e6
    assert result["check_ratio"].keys() == result["naive_over_check"].keys() == {"64"}
    assert result["seconds"]["64"]["samples"] == 1 and result["seconds"]["64"]["tokens"] == 64
    assert result["riding_ratio"].keys() == {"64"} and all(result[key]["16"] > 0 for key in THROUGHPUTS)
    assert result["answer_tokens"] == {
        "guarded_throughput": {"16": [32, 32]},
        "guarded_throughput_riding": {"16": [32, 32]},
        "guarded_throughput_rk": {"16": [32]},
    }
    assert result["packed_speedup"] is None, "600 tokens do not fit into a context of 512"
    assert [cut.partition(":")[0] for cut in result["cut"]] == [
        "cost of a check at 8192 tokens",
        "cost of a check that rides, at 8192 tokens",
        "scan of 600 tokens at 23 depths",
    ]
    assert all("the model's context has room for" in cut for cut in result["cut"])
    assert lines[2].startswith("a decode step takes ") and "the measuring takes about " in lines[2]
    assert [line.partition(";")[0] for line in lines[3:]] == [
        "1/5 cost of a check at 64 tokens",
        "2/5 cost of a check that rides, at 64 tokens",
        "3/5 throughput with the probe, a check every 16 tokens",
        "4/5 throughput with the look-ahead, a check every 16 tokens",
        "5/5 throughput with the probe, a check every 16 tokens, round 2",
    ]
    assert all(line.endswith(" left") for line in lines[3:])
    assert [figures for _, _, figures in seen] == [0, 1, 2, 3, 4, 5, 5, 5, 5], "each figure is told as it comes"
    assert [finished for _, finished, _ in seen] == [False] * 8 + [True]
    assert [row.what for rows, _, _ in seen for row in rows] == [
        "a check costs",
        "the naive way costs",
        "a check that rides costs",
        "guarded throughput, probe",
        "guarded throughput, probe, riding",
        "guarded throughput, look-ahead",
        "guarded throughput, probe",
        "guarded throughput, probe, riding",
    ]
    assert "(2 rounds)" in seen[6][0][0].figure and "(2 rounds)" in seen[7][0][0].figure


def test_a_run_whose_time_is_over_leaves_the_rest_out_and_says_so(folder: Path) -> None:
    result = bench.run(str(folder), contexts=[64], intervals=[16], quick=True, clock=Ticking(1e4))
    assert result["finished"] and result["check_ratio"] == {} and result["took_seconds"] > result["budget_seconds"]
    assert sum("left out" in cut for cut in result["cut"]) == 5


# -- machines of any speed ---------------------------------------------------------------------------------------------


@dataclass
class Machine:
    """Moves a clock as a model whose decode step takes `step` seconds would, `step` growing with the context."""

    step: float
    doubles: float = 4096
    now: float = 0.0

    def at(self, length: int) -> PartTimes:
        factor = 1 + length / self.doubles
        return PartTimes(length, self.step * factor / 8, self.step * factor, self.step * factor, 3 * self.step * factor)

    def clock(self) -> float:
        return self.now

    def check_times(
        self, backend: Any, detectors: Any, context: int, samples: int, *, steps: int, enough: Callable[[], bool]
    ) -> tuple[int, dict[str, list[float]]]:
        rate = self.at(context)
        self.now += context * rate.prefill + steps * rate.step
        done = 0
        while done < samples and not (done and enough()):
            self.now += steps * rate.step + rate.check + rate.naive
            done += 1
        return context, {"step": [rate.step] * done, "check": [rate.check] * done, "check, naive": [rate.naive] * done}

    def riding_times(
        self, backend: Any, probe: Any, context: int, samples: int, *, enough: Callable[[], bool]
    ) -> tuple[list[float], list[float]]:
        rate = self.at(context)
        self.now += context * rate.prefill
        done = 0
        while done < samples and not (done and enough()):
            self.now += 2 * rate.step + 0.3 * rate.check
            done += 1
        return [rate.step] * done, [rate.step + 0.3 * rate.check] * done

    def throughputs(self, backend: Any, detector: Any, interval: int, tokens: int, ways: Sequence[str]) -> list[float]:
        rate = self.at(64 + tokens)
        plain = 64 * rate.prefill + tokens * rate.step
        check = rate.check + (20 * rate.step if detector.name == "rethink" else 0)
        guarded = plain + (tokens / interval + 6) * check
        self.now += plain + len(ways) * guarded
        return [plain / guarded for _ in ways]

    def packed_speedups(self, backend: Any, probe: Any, rounds: int) -> tuple[list[float], list[float]]:
        rate = self.at(640)
        self.now += rounds * (3 * 640 * rate.prefill + 23 * (2 * rate.step + rate.check + rate.naive))
        return [5.0] * rounds, [3.0] * rounds


def simulated(machine: Machine, effort: Effort, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], list[str]]:
    backend = TransformersBackend(tiny_model("Llama"), tiny_tokenizer())
    monkeypatch.setattr(type(backend), "context_length", 32768)
    for name in ("check_times", "riding_times", "throughputs", "packed_speedups"):
        monkeypatch.setattr(parts, name, getattr(machine, name))
    report = Report(backend, suite._blank_probe(backend), "float32", effort.seconds, lambda rows, result: None)
    measurements, impossible = suite._measurements(
        report, effort, Rates(machine.at(64)), (128, 512, 2048, 8192), INTERVALS
    )
    assert not impossible
    return report.result, spend(measurements, effort.seconds, machine.clock, lambda stands: None)


@pytest.mark.parametrize("effort", [suite.QUICK, suite.FULL], ids=["quick", "full"])
@pytest.mark.parametrize("step", [0.001, 0.02, 0.08, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("doubles", [1024, 4096, 100_000])
def test_any_machine_is_done_in_time(
    step: float, doubles: float, effort: Effort, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(step, doubles)
    result, cuts = simulated(machine, effort, monkeypatch)
    assert machine.now <= 1.15 * effort.seconds
    missing = [f"check at {n} tokens" for n in (128, 512, 2048, 8192) if str(n) not in result["check_ratio"]]
    missing += [f"that rides, at {n} tokens" for n in (128, 512, 2048, 8192) if str(n) not in result["riding_ratio"]]
    for key, who in zip(THROUGHPUTS, ("probe", "probe", "look-ahead"), strict=True):
        missing += [f"the {who}, a check every {n} tokens" for n in INTERVALS[1:] if str(n) not in result[key]]
        missing += [f"the {who}, a check every token"] * ("1" not in result[key])
    missing += ["at 23 depths"] if result["packed_speedup"] is None else []
    assert all(any(f"{name}: left out" in cut for cut in cuts) for name in missing), "what is missing is said"
    assert result["check_ratio"], "even a slow machine tells something"


def test_a_fast_machine_measures_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    result, cuts = simulated(Machine(0.002), suite.FULL, monkeypatch)
    assert cuts == [] and {each["samples"] for each in result["seconds"].values()} == {7}
    assert result["answer_tokens"]["guarded_throughput_riding"]["1"] == [512, 512]


def test_checks_are_measured_within_the_models_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """A context as long as the model's is measured a little shorter, and the figure says at how many tokens."""
    backend = TransformersBackend(tiny_model("Llama"), tiny_tokenizer())
    probe = suite._blank_probe(backend)
    probe.bind(backend)
    tokens, times = measure.check_times(backend, {"check": probe}, 512, 1, steps=4)
    assert tokens == 512 - measure.room(1, 4) - len(backend.header.ids) - len(backend.header.answer_ids)
    assert [len(values) for values in times.values()] == [1, 1, 1]


def test_the_first_check_of_a_detector_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean that is first read in the middle of an answer runs the whole text once more; no later check does."""
    backend = TransformersBackend(tiny_model("Llama"), tiny_tokenizer())
    probe, log = suite._blank_probe(backend), list[str]()
    probe.bind(backend)
    check, clock = probe.check, measure.seconds
    monkeypatch.setattr(probe, "check", lambda *given: log.append("check") or check(*given))
    monkeypatch.setattr(measure, "seconds", lambda work: log.append("timed") or clock(work))
    measure.check_times(backend, {"check": probe}, 128, 2, steps=2)
    assert log[: log.index("timed")] == ["check"] and log.count("check") == 3


def test_a_measurement_ends_early_after_one_sample_at_least() -> None:
    backend = TransformersBackend(tiny_model("Llama"), tiny_tokenizer())
    probe = suite._blank_probe(backend)
    probe.bind(backend)
    _, times = measure.check_times(backend, {"check": probe}, 64, 5, steps=2, enough=lambda: True)
    assert {name: len(values) for name, values in times.items()} == {"step": 1, "check": 1, "check, naive": 1}


def test_a_recurrent_model_says_why_it_cannot_be_packed() -> None:
    backend = TransformersBackend(tiny_model("Mamba-2"), tiny_tokenizer())
    report: Any = SimpleNamespace(backend=backend, probe=suite._blank_probe(backend))
    _, cuts = suite._measurements(report, suite.QUICK, Rates(PartTimes(64, 1, 1, 1, 1)), (128,), (25,))
    assert cuts[0].startswith("scan of 600 tokens at 23 depths: not possible for this model, ")
    assert cuts[1].startswith("checks that ride in the decode step: not possible for this model, ")


def test_rates_grow_with_the_length_until_one_is_measured() -> None:
    rates = Rates(PartTimes(64, 0.1, 1.0, 2.0, 3.0))
    assert rates.at(32) == PartTimes(32, 0.1, 1.0, 2.0, 3.0)
    assert rates.at(64 + 4096).step == 2.0
    rates.add(2048, step=1.1, check=2.2, naive=3.3)
    assert rates.at(2048).step == 1.1 and rates.at(64).step == 1.0 and rates.at(2048 + 4096).check == pytest.approx(4.4)


# -- random weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma-3"])
def test_a_config_alone_is_measured_with_random_weights(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model(family).config.save_pretrained(tmp_path)
    monkeypatch.setattr(suite, "QUICK", Effort(seconds=1e6, samples=1, tokens=8, rounds=1))
    result = bench.run(
        None,
        config=tmp_path / "config.json",
        contexts=[64],
        intervals=[2],
        quick=True,
        progress=lambda line: None,
        clock=Ticking(0.0),
    )
    assert result["check_ratio"]["64"] > 0 and result["guarded_throughput"]["2"] > 0
    assert result["probe"]["safety_tokens"] == 4 and result["model"]["layers"] == 4
    assert "random weights" in result["model"]["name"] and str(tmp_path) in result["model"]["name"]


def test_the_number_format_of_random_weights_is_that_of_the_file_or_the_option(tmp_path: Path) -> None:
    config = tiny_model("Llama").config
    config.dtype = "bfloat16"
    config.save_pretrained(tmp_path)
    formats = {dtype: build(tmp_path / "config.json", dtype).model.dtype for dtype in ("auto", "float32", "float16")}
    assert formats == {"auto": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


def test_a_config_that_no_model_can_be_made_of_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: there is no such file"):
        build(tmp_path / "none.json", "float32")
    (tmp_path / "config.json").write_text('{"model_type": "none-of-these"}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json: no causal language model can be made of it: .*none-of-these"):
        build(tmp_path / "config.json", "float32")
    config = tiny_model("Llama").config
    config.vocab_size = 8
    config.save_pretrained(tmp_path / "few")
    with pytest.raises(ConfigError, match="vocabulary of 8 tokens has no room"):
        build(tmp_path / "few" / "config.json", "float32")
    with pytest.raises(ConfigError, match="give one of them"):
        bench.run(None)


def test_a_probe_of_trained_safety_tokens_is_measured_with_its_own_tokens(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = load(str(folder), dtype="float32")
    width = backend.identity.hidden_size
    card = ProbeCard(
        model=backend.identity,
        header_ids=backend.header.ids,
        reads=(Read(Site(1), 0),),
        template_digest=backend.template.digest,
        safety_tokens=1,
    )
    LinearProbe(np.ones((1, width)), 0.0, card, embeddings=np.ones((1, width), np.float32)).save(tmp_path / "own.st")
    monkeypatch.setattr(suite, "QUICK", Effort(seconds=1e6, samples=1, tokens=32, rounds=1))
    result = bench.run(
        str(folder), contexts=[64], intervals=[16], probe=str(tmp_path / "own.st"), quick=True, clock=Ticking(0.0)
    )
    assert result["finished"] and result["check_ratio"].keys() == result["riding_ratio"].keys() == {"64"}
    assert result["probe"] == {"reads": ["1.input_layernorm@0"], "safety_tokens": 1}
    assert all(result[key]["16"] > 0 for key in THROUGHPUTS)
