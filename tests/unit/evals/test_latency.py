"""The suite latency on a tiny model: that it measures what it says; never how long anything takes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from anydepth.backends.transformers.memory import fork_bytes, peak_growth
from anydepth.bench.timing import check_times, endless, filled, room
from anydepth.errors import ConfigError
from anydepth.evals.arms.model_as_judge import Wording
from anydepth.evals.context import Context
from anydepth.evals.figure import Summary
from anydepth.evals.suites import latency
from tests.evaluations import random_probe, tiny_backend, tiny_context

ASKED = Wording(("w1",), ("w2",), "w3 {request} {answer}")


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short contexts, and words that the tiny vocabulary has."""
    monkeypatch.setattr(latency, "QUICK_CONTEXTS", (64, 128))
    monkeypatch.setattr(latency, "guard_wording", lambda name: ASKED)
    monkeypatch.setattr("anydepth.detectors.rethink._first_tokens", lambda openers, backend: ((30, 31), (30, 31)))


def context_of(tmp_path: Path, **given: Any) -> Context:
    return tiny_context(tmp_path, "latency", **given)


def run(context: Context) -> Summary:
    try:
        return latency.run(context)
    finally:
        context.close()


def test_every_arm_is_measured_at_every_length(tmp_path: Path) -> None:
    summary = run(context_of(tmp_path))
    measured = {(f.group["arm"], f.group["context"]) for f in summary.figures if f.name == "decode steps a check"}
    arms = {"probe", "rethink", "rethink-score", "probe, naive", "guard-model"}
    assert measured == {(arm, length) for arm in arms for length in (64, 128)}
    assert all(figure.value is not None and figure.value >= 0 for figure in summary.figures)
    assert {f.group["interval"] for f in summary.figures if f.name == "guarded throughput"} == {25}
    stand_in = [figure for figure in summary.figures if figure.group.get("arm") == "guard-model" and figure.note]
    assert stand_in and all("stands in" in (figure.note or "") for figure in stand_in)
    names = {name for chart in summary.charts for name in chart.figures}
    assert names == {figure.name for figure in summary.figures}


def test_a_guard_model_stands_beside_the_model_asked_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anydepth.evals.arms.model_as_judge import AskedModel

    backend = tiny_backend()
    other = tiny_backend("Qwen2")
    monkeypatch.setattr(
        AskedModel, "load", classmethod(lambda cls, model: AskedModel(other.model, other.tokenizer, ASKED))
    )
    summary = run(context_of(tmp_path, backend=backend, options={"guard_model": "org/guard"}))
    assert {"guard-model", "self-defence"} <= {figure.group.get("arm") for figure in summary.figures}
    assert not any("stands in" in note for note in summary.notes)


def test_ratios_are_of_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"step": [0.1, 0.2, 0.3], "probe": [0.1, 0.1, 0.4], "probe, naive": [0.5], "rethink": [2.0]}
    monkeypatch.setattr(latency.bench, "check_times", lambda *_: (64, {k: list(v) for k, v in times.items()}))
    monkeypatch.setattr(latency.bench, "seconds", lambda work: 0.8)
    monkeypatch.setattr(latency.bench, "throughput", lambda *_: 0.5)
    summary = run(context_of(tmp_path))
    found = {(f.name, f.group.get("arm")): f.value for f in summary.figures if f.group.get("context") == 64}
    assert found["decode step", None] == pytest.approx(0.2)
    assert found["decode steps a check", "probe"] == pytest.approx(0.1 / 0.2)
    assert found["times a probe's check", "probe, naive"] == pytest.approx(5)
    assert found["times a probe's check", "guard-model"] == pytest.approx(8)
    assert "With probe every 25 tokens 50% of the throughput is lost." in summary.limits


def test_lengths_that_do_not_fit_are_left_out_with_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "QUICK_CONTEXTS", (64, 500))
    summary = run(context_of(tmp_path))
    assert {figure.group.get("context") for figure in summary.figures if figure.name == "decode step"} == {64}
    assert "Not measured at 500 tokens: the model's context has 512." in summary.notes
    monkeypatch.setattr(latency, "QUICK_CONTEXTS", (500,))
    with pytest.raises(ConfigError, match="context of 512 tokens has no room"):
        run(context_of(tmp_path, folder=tmp_path / "other"))


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(context_of(tmp_path))
    for name in ("check_times", "throughput", "seconds"):
        monkeypatch.setattr(latency.bench, name, lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(latency, "_memory", lambda *_: pytest.fail("measured again"))
    assert run(context_of(tmp_path)).record() == first.record()


# -- measuring ---------------------------------------------------------------------------------------------------------


def test_every_sample_is_a_step_and_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = tiny_backend()
    probe = random_probe(backend)
    tokens, times = check_times(backend, {"a": probe}, 100, 2)
    assert tokens == 100 and {name: len(each) for name, each in times.items()} == {"step": 2, "a": 2, "a, naive": 2}
    tokens, _ = check_times(backend, {"a": probe}, 512, 2)
    assert tokens == 512 - room(2) - len(backend.header.ids) - len(backend.header.answer_ids)


def test_a_fork_shares_its_parents_memory_and_a_grown_one_does_not() -> None:
    backend = tiny_backend()
    probe = random_probe(backend)
    session = backend.open([filled(backend, 60)], max_new_tokens=120, **endless(backend))
    found = []
    for _ in range(14):
        session.decode(8)
        cache, beyond = fork_bytes(session, probe.reads)
        found.append((cache, beyond))
    assert found[0][1] == 0, "the header fits behind the parent's end"
    assert all(0 <= beyond <= 2 * cache for cache, beyond in found)
    state = 2 * 2 * 8 * 4  # keys and values, two heads of eight float32
    assert found[0][0] >= 4 * 68 * state
    session.close()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_growth_sees_what_is_allocated_and_freed() -> None:
    def work() -> None:
        torch.ones(16, 2**20).sum()

    # a process that has lived for a while: much free memory below a piece that is still held
    torch.ones(2**22).sum()  # from its size on, glibc takes pieces from the heap
    pieces = [torch.ones(2**18) for _ in range(200)]
    kept = pieces[-1:]
    del pieces
    grown = peak_growth(work)
    assert grown is not None and grown >= 60 * 2**20
    assert len(kept) == 1
