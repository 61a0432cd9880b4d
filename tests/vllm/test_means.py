"""Means over the answer's tokens inside vLLM: what a cached prefix, a chunk or a lone mean could lose."""

import numpy as np
import pytest
from transformers import AutoTokenizer

pytest.importorskip("vllm", reason="vllm is not installed here; docs/vllm.md says how to run these tests")

from anydepth import LinearProbe
from anydepth.backends.protocol import CONTENT, WHOLE, FinishedAnswer, Read, Site
from anydepth.backends.transformers.backend import TransformersBackend
from anydepth.detectors.finished import score_finished
from anydepth.errors import PromptError
from anydepth.templates.template import Prompt
from anydepth.vllm.report_field import parse_stop_reason
from anydepth.vllm.vllm_backend import VllmBackend
from anydepth.vllm.worker.header_rows import HeaderRows
from tests.vllm.engine import DEFAULTS, monitor
from tests.vllm.model import PROMPTS, planted_probe

OFF = {"guard": False}
LONG = [{"role": "user", "content": " ".join(f"w{n % 200}" for n in range(60))}]


def checks_of(answer):
    return {each["depth"]: each["score"] for each in answer.report["timeline"]}


def prefill(size, seed=1):
    return [int(each) for each in np.random.default_rng(seed).integers(9, 250, size)]


@pytest.fixture(scope="module")
def probe(probe_file):
    return LinearProbe.load(probe_file)


def test_scores_are_those_of_the_packed_pass(engines, reference, probe, tiny_folder):
    """Live in vLLM, greedy and sampled, with and without a prefill; and afterwards in Transformers, at once."""
    engine = engines(settings=None)
    asked = [(engine.ids(each), prefill(11 * (n % 2), n)) for n, each in enumerate(PROMPTS[:6])]
    names = [
        engine.add(ids + start, guard=monitor(interval=8), max_tokens=30, ignore_eos=True, temperature=n % 3, seed=n)
        for n, (ids, start) in enumerate(asked)
    ]
    told = engine.run()
    packed = TransformersBackend(reference.model, AutoTokenizer.from_pretrained(tiny_folder))
    for name, (ids, start) in zip(names, asked, strict=True):
        checks = checks_of(told[name])
        finished = FinishedAnswer(Prompt(tuple(ids)), (*start, *told[name].token_ids), tuple(checks))
        (scores,) = score_finished(packed, probe, [finished])
        assert list(checks.values()) == pytest.approx([score.value for score in scores], abs=1e-3)
        assert np.ptp(list(checks.values())) > 1e-3


def test_a_cached_prefix_hides_no_token_of_a_prefill(engines, reference, probe):
    """The second and third request find all of it in the cache, another one's answer and prompt among them."""
    engine = engines(settings=None)
    ids, start = engine.ids(LONG), prefill(70)
    first = engine.answer(ids + start, guard=monitor(interval=20), max_tokens=6, ignore_eos=True)
    again = engine.answer(ids + start, guard=monitor(interval=20), max_tokens=6, ignore_eos=True)
    longer = engine.answer(ids + start + first.token_ids, guard=monitor(interval=20), max_tokens=3, ignore_eos=True)
    assert list(checks_of(first)) == [0, 1, 2, 4, 8, 16, 20, 40, 60, 70, 71, 72, 74, 76]
    assert first.token_ids == again.token_ids and longer.report["prefill"] == 76
    for answer, text in ((first, start), (again, start), (longer, start + first.token_ids)):
        checks = checks_of(answer)
        wanted = reference.scores(probe, ids, text + answer.token_ids, list(checks))
        assert checks == pytest.approx(wanted, abs=1e-3) and answer.report["failed_checks"] == 0
    engine.verified()


def test_a_prefill_is_computed_for_one_check_and_cached_for_the_others(engines):
    engine = engines(settings=None)
    rows, schedule = [], engine.scheduler.schedule

    def counting(*args, **kwargs):
        output = schedule(*args, **kwargs)
        rows.append(output.total_num_scheduled_tokens)
        return output

    ids, start = engine.ids(PROMPTS[11]), prefill(160, seed=9)
    engine.scheduler.schedule = counting
    try:
        answer = engine.answer(ids + start, guard=monitor(interval=40), max_tokens=1, ignore_eos=True)
    finally:
        del engine.scheduler.schedule
    checks = len(answer.report["timeline"])
    assert checks == 12 and answer.report["failed_checks"] == 0
    block = engine.scheduler.block_size
    assert sum(rows) < len(ids) + len(start) + checks * (block + len(engine.scheduler.setup.header_ids) + 2)


@pytest.mark.parametrize("budget", [24])
def test_chunks_of_a_prefill_are_read_chunk_by_chunk(engines, reference, probe, budget):
    engine = engines(max_num_batched_tokens=budget, max_num_seqs=8, max_model_len=128, enable_chunked_prefill=True)
    asked = [(engine.ids(PROMPTS[n]), prefill(30 + n, seed=n)) for n in range(4)]
    names = [engine.add(ids + start, guard=monitor(interval=9), max_tokens=12, ignore_eos=True) for ids, start in asked]
    told = engine.run()
    for name, (ids, start) in zip(names, asked, strict=True):
        checks = checks_of(told[name])
        wanted = reference.scores(probe, ids, start + told[name].token_ids, list(checks))
        assert checks == pytest.approx(wanted, abs=1e-3) and told[name].report["failed_checks"] == 0
    engine.verified()


def test_means_alone_run_one_token_of_the_header(engines, reference, tmp_path, monkeypatch):
    file = planted_probe(tmp_path / "probe.safetensors", reference, ("3.output@mean4", "1.input_layernorm@mean"))
    engine = engines(settings={"guard": {"probe": str(file)}})
    (stats,) = engine.llm.collective_rpc("anydepth_stats")
    assert len(engine.scheduler.setup.header_ids) == 1 and stats["header_ends_at"] == 0
    cut, spread = [], HeaderRows._spread
    monkeypatch.setattr(HeaderRows, "_spread", lambda rows, kept: cut.append(kept) or spread(rows, kept))
    asked = [[*engine.ids(each), *start] for each, start in zip(PROMPTS, ([], [], prefill(21), []), strict=False)]
    plain = engine.answers(asked, guard=OFF, max_tokens=22)
    assert not cut
    told = engine.answers(asked, guard=monitor(interval=7), max_tokens=22)
    assert cut and [each.token_ids for each in told] == [each.token_ids for each in plain]
    for answer, ids, messages in zip(told, asked, PROMPTS, strict=False):
        begin = len(engine.ids(messages))
        length = len(answer.token_ids) - int(answer.finish_reason == "stop")
        checks = checks_of(answer)
        wanted = reference.scores(
            LinearProbe.load(file), ids[:begin], [*ids[begin:], *answer.token_ids[:length]], list(checks)
        )
        assert len(checks) > 3 and checks == pytest.approx(wanted, abs=1e-3)
    ends = engine.answer(PROMPTS[1], guard=monitor(interval=10), min_tokens=5, logit_bias={2: 100.0}, max_tokens=30)
    assert [each["depth"] for each in ends.report["timeline"]] == [0, 1, 2, 4, 5]
    engine.verified()


def test_a_worker_that_loses_a_token_halts_the_answer(engines, monkeypatch):
    engine = engines(settings=None)
    state = engine.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.anydepth
    findings, steps = state.findings, []

    def losing(*found):
        told = findings(*found)
        steps.append(told)
        if len(steps) == 4:
            told.spans.clear()
        return told

    monkeypatch.setattr(state, "findings", losing)
    answer = engine.answer(PROMPTS[0], guard={"threshold": 1.0, "interval": 8}, max_tokens=20, ignore_eos=True)
    report = parse_stop_reason(answer.stop_reason)
    assert report["reason"] == "error" and report["error"] == "CheckError" and len(answer.token_ids) == 2


@pytest.fixture(scope="module")
def backend(tiny_folder):
    made = VllmBackend(
        tiny_folder, sites=[Site(2), Site(1, "mlp")], **DEFAULTS, max_num_batched_tokens=48, enable_chunked_prefill=True
    )
    yield made
    del made


@pytest.mark.parametrize("tokens", [[CONTENT, -7, 1, WHOLE], [-2, WHOLE]])
def test_the_backend_reads_means_of_finished_answers(backend, reference, tokens):
    rng = np.random.default_rng(5)
    answers = [
        FinishedAnswer(Prompt(tuple(reference.template.prompt(each).ids)), tuple(map(int, rng.integers(9, 250, 50))),
                       depths) for each, depths in zip(PROMPTS, [(0, 1, 7, 25, 50), (31, 3), (0,)], strict=False)
    ]  # fmt: skip
    for _ in range(2):  # the second time everything is in the prefix cache
        found = backend.read_batch(answers, [Site(1, "mlp"), Site(2)], tokens=tokens)
        for answer, states in zip(answers, found, strict=True):
            for index, depth in enumerate(answer.depths):
                ids = (*answer.prompt.ids, *answer.answer_ids[:depth])
                for site, values in states.items():
                    wanted = reference.states(ids, depth, [Read(site, token) for token in tokens])
                    np.testing.assert_allclose(values[index], wanted, atol=1e-3, rtol=1e-3)
    with pytest.raises(PromptError, match="depth 51 is outside"):
        backend.read_batch([FinishedAnswer(answers[0].prompt, answers[0].answer_ids, (51,))], [Site(2)], tokens=tokens)
