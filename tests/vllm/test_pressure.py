"""Where a header could be lost: preemption, a small token budget, chunked prefill, the end of the context."""

import pytest

pytest.importorskip("vllm", reason="vllm is not installed here; docs/vllm.md says how to run these tests")

from anydepth import LinearProbe
from anydepth.errors import ConfigError
from anydepth.vllm.report_field import parse_stop_reason
from tests.vllm.engine import monitor
from tests.vllm.model import PROMPTS

OFF = {"guard": False}


@pytest.fixture(scope="module")
def probe(probe_file):
    return LinearProbe.load(probe_file)


def same_as_alone(engine, reference, probe, many, length, interval):
    """Guarded answers under pressure: the tokens of unguarded ones, a check at every depth, the right scores."""
    alone = [engine.answer(each, guard=OFF, max_tokens=length, ignore_eos=True).token_ids for each in many]
    names = [engine.add(each, guard=monitor(interval=interval), max_tokens=length, ignore_eos=True) for each in many]
    held = [engine.add(each, guard={"threshold": 1.0, "interval": interval}, max_tokens=length, ignore_eos=True)
            for each in many]  # fmt: skip
    told = engine.run()
    assert [told[name].token_ids for name in names] == alone == [told[name].token_ids for name in held]
    for name, messages in zip(names, many, strict=True):
        checks = {each["depth"]: each["score"] for each in told[name].report["timeline"]}
        assert told[name].report["failed_checks"] == 0 and max(checks) == length
        wanted = reference.scores(probe, engine.ids(messages), told[name].token_ids, list(checks))
        assert checks == pytest.approx(wanted, abs=1e-3)
    engine.verified()
    assert not engine.scheduler.requests and not engine.scheduler._guarded and not engine.scheduler._check_requests


@pytest.mark.parametrize("caching", [True, False])
def test_preempted_requests_are_checked_all_the_same(engines, reference, probe, caching, monkeypatch):
    engine = engines(num_gpu_blocks_override=9, max_model_len=128, enable_prefix_caching=caching)
    seen = {"preempted": 0, "apart": 0}
    attend, preempt = engine.scheduler._attend, engine.scheduler._preempt_request

    def counting(guarded, *, apart=False):
        seen["apart"] += apart
        return attend(guarded, apart=apart)

    def preempting(*args, **kwargs):
        seen["preempted"] += 1
        return preempt(*args, **kwargs)

    monkeypatch.setattr(engine.scheduler, "_attend", counting)
    monkeypatch.setattr(engine.scheduler, "_preempt_request", preempting)
    same_as_alone(engine, reference, probe, PROMPTS[:6], 60, 3)
    assert seen["preempted"] > 3 and seen["apart"] > 0, "the cache was not small enough to test anything"


@pytest.mark.parametrize("budget", [16, 24, 37])
def test_a_small_token_budget_cuts_no_header_short(engines, reference, probe, budget):
    engine = engines(max_num_batched_tokens=budget, max_num_seqs=8, max_model_len=128, enable_chunked_prefill=True)
    long = [{"role": "user", "content": " ".join(f"w{n}" for n in range(50))}]
    same_as_alone(engine, reference, probe, [*PROMPTS[:7], long], 30, 2)


def test_a_budget_that_has_no_room_for_a_check_is_refused(engines):
    with pytest.raises(Exception, match="a check needs") as caught:
        engines(max_num_batched_tokens=4, max_num_seqs=4, max_model_len=128)
    assert isinstance(caught.value, ConfigError)


def test_the_end_of_the_context_leaves_room_for_the_last_check(engines, reference, probe):
    engine = engines(max_model_len=64)
    for size in (30, 41, 44, 45, 46):
        messages = [{"role": "user", "content": " ".join(f"w{n}" for n in range(size))}]
        ids = engine.ids(messages)
        room = 64 - len(ids) - engine.scheduler.setup.room
        answer = engine.answer(messages, guard=monitor(interval=4), max_tokens=40, ignore_eos=True)
        if room < 1:
            assert parse_stop_reason(answer.stop_reason)["reason"] == "refused"
            continue
        assert len(answer.token_ids) == min(room, 40) and answer.finish_reason == "length"
        checks = {each["depth"]: each["score"] for each in answer.report["timeline"]}
        assert max(checks) == len(answer.token_ids)
        assert checks == pytest.approx(reference.scores(probe, ids, answer.token_ids, list(checks)), abs=1e-3)
    engine.verified()


def test_one_place_is_enough_for_requests_that_need_check_requests(engines):
    engine = engines(max_num_seqs=1, max_model_len=256)
    ids = [[*engine.ids(each), 20, 30, 40, 50] for each in PROMPTS[:4]]
    told = engine.answers(ids, guard=monitor(interval=5), max_tokens=12, ignore_eos=True)
    for answer in told:
        assert [each["depth"] for each in answer.report["timeline"]] == [0, 1, 2, 4, 5, 6, 8, 9, 14, 16]
    plain = engine.answers(ids, guard=OFF, max_tokens=12, ignore_eos=True)
    assert [each.token_ids for each in told] == [each.token_ids for each in plain]


def test_a_state_that_is_not_finite_halts(engines, monkeypatch):
    engine = engines(max_num_seqs=1, max_model_len=256)
    state = engine.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.anydepth
    weight = state.reader.weight.clone()
    state.reader.weight[:] = float("nan")
    answer = engine.answer(PROMPTS[0], guard={"threshold": 1.0})
    report = parse_stop_reason(answer.stop_reason)
    assert report["reason"] == "error" and report["error"] == "CheckError" and not answer.token_ids
    state.reader.weight[:] = weight
    assert not engine.answer(PROMPTS[0], guard={"threshold": 1.0}).halted
    monkeypatch.setattr(state, "finish", lambda *args: None)  # a worker that says nothing
    assert parse_stop_reason(engine.answer(PROMPTS[0], guard={"threshold": 1.0}).stop_reason)["reason"] == "error"
    engine.verified()


def test_an_audit_that_cannot_be_written_stops_the_answers(engines, monkeypatch):
    engine = engines(max_num_seqs=1, max_model_len=256)
    sink = engine.scheduler._admission.audit._sink
    monkeypatch.setattr(sink, "write", _full)
    monkeypatch.setattr(sink, "probe", _full)
    answer = engine.answer(PROMPTS[0], guard={"threshold": 1.0})
    assert parse_stop_reason(answer.stop_reason)["error"] == "AuditError" and not answer.token_ids


def _full(*args):
    raise OSError(28, "no space left on device")
