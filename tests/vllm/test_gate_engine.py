"""A gate in the engine: two readings of a turn, nothing decoded, and nothing that others notice."""

import json

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vllm is not installed here; docs/vllm.md says how to run these tests")

from anydepth import LinearProbe
from anydepth.audit.trail import AuditError
from anydepth.vllm.engine.check_requests import is_check_request
from tests.vllm.engine import monitor
from tests.vllm.model import PROMPTS
from tests.vllm.test_given_up import between_steps, in_its_step, nothing_left, steps_to_check_request

TURN = [int(each) for each in np.random.default_rng(7).integers(9, 250, 45)]
"""The assistant's turn with the call, which begins after 12 of its tokens."""


def question(number: int = 0, *, before: int = 12, control: bool = True, **options) -> dict:
    told = {"id": f"gate-{number}", "tool": "f", "arguments": "{}", "prefill": len(TURN), "before": before}
    return {"gate": {**told, "control": control}, **options}


def judged(told) -> dict:
    assert told.token_ids == [] and told.finish_reason == "stop"
    return told.report["gate"]


@pytest.mark.parametrize(("before", "control"), [(12, True), (0, True), (0, False)])
def test_the_readings_are_those_of_the_plainest_way_and_a_chat_beside_it_is_the_chat_alone(
    engines, reference, probe_file, before, control
):
    engine = engines(settings=None)
    chat = engine.answer(PROMPTS[2], guard=monitor(interval=5), ignore_eos=True)
    for _ in range(2):  # the second time everything is in the prefix cache
        prompts = [engine.ids(PROMPTS[number]) for number in range(3)]
        other = engine.add(PROMPTS[2], guard=monitor(interval=5), ignore_eos=True)
        names = [
            engine.add([*ids, *TURN], guard=question(number, before=before, control=control))
            for number, ids in enumerate(prompts)
        ]
        told = engine.run()
        assert told[other].token_ids == chat.token_ids and told[other].report == chat.report
        for number, (name, ids) in enumerate(zip(names, prompts, strict=True)):
            theirs = reference.scores(LinearProbe.load(probe_file), ids, TURN, [before, len(TURN)])
            report = judged(told[name])["anydepth"]
            assert report["score"] == pytest.approx(theirs[len(TURN)], abs=1e-3)
            assert report["before"] == (pytest.approx(theirs[before], abs=1e-3) if control else None)
            assert (report["depth"], report["method"], report["failed_checks"]) == (len(TURN), "forks", 0)
            record = engine.records(f"gate-{number}")[-1]
            assert record["kind"] == "gate" and record["verdict"]["score"] == report["score"]
    assert nothing_left(engine)
    engine.verified()


def test_no_token_of_a_gate_is_computed_but_by_its_check_requests(engines):
    engine = engines(settings=None)
    scheduler = engine.scheduler
    name = engine.add([*engine.ids(PROMPTS[5]), *TURN], guard=question())
    (guarded,) = scheduler._guarded.values()
    running = []
    told = engine.run(each_step=lambda _: running.extend(each.request_id for each in scheduler.running))
    assert all(map(is_check_request, running)) and guarded.request.num_computed_tokens == 0
    assert judged(told[name])["allowed"] and guarded.request.num_output_tokens == 0


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"threshold": 0.0, "release": "monitor"}])
def test_the_requests_options_hold(engines, options):
    engine = engines(settings=None)
    found = judged(engine.answer([*engine.ids(PROMPTS[1]), *TURN], guard=question(**options)))
    assert found["allowed"] is ("release" in options) and found["anydepth"]["would_halt"]


@pytest.mark.parametrize("end", [between_steps, in_its_step])
@pytest.mark.parametrize("on_error", ["closed", "open"])
def test_a_check_request_that_vllm_ends_alone_is_a_failed_check(engines, probe_file, end, on_error):
    engine = engines(settings={"guard": {"probe": str(probe_file), "on_error": on_error}})
    name = engine.add([*engine.ids(PROMPTS[3]), *TURN], guard=question(control=False))
    end(engine.scheduler, steps_to_check_request(engine))
    found = judged(engine.run()[name])
    assert found["allowed"] is (on_error == "open") and found["anydepth"]["failed_checks"] == 1
    assert found["anydepth"]["reason"] == "error" and "CheckError" in found["why"]
    assert nothing_left(engine)


def test_a_gate_whose_client_goes_leaves_nothing(engines):
    engine = engines(settings=None)
    before = len(engine.records("gate-77"))
    name = engine.add([*engine.ids(PROMPTS[6]), *TURN], guard=question(77))
    steps_to_check_request(engine)
    engine.engine.abort_request([name])
    engine.run()
    assert nothing_left(engine) and len(engine.records("gate-77")) == before == 0


def test_a_verdict_that_cannot_be_recorded_is_none(engines, monkeypatch):
    engine = engines(settings=None)

    def write(record):
        raise AuditError("the disk is full")

    monkeypatch.setattr(engine.scheduler._admission.audit, "write", write)
    told = engine.answer([*engine.ids(PROMPTS[1]), *TURN], guard=question())
    assert told.token_ids == [] and "gate" not in told.report
    assert told.report["error"] == "AuditError" and told.report["halted"]


@pytest.mark.parametrize(
    ("guard", "said"),
    [
        ({"gate": {"id": "x"}}, "anydepth.gate.tool"),
        (question(before=45), "the call begins at 45"),
        (question(before=-1), "anydepth.gate.before"),
        (question(interval=1000), "anydepth.interval"),
    ],
)
def test_a_question_that_cannot_be_is_refused(engines, guard, said):
    engine = engines(settings=None)
    told = engine.answer([*engine.ids(PROMPTS[1]), *TURN], guard=guard)
    assert told.token_ids == [] and said in json.dumps(told.stop_reason) and "refused" in told.stop_reason


def test_a_policy_that_one_reading_cannot_halt_is_refused(engines, probe_file):
    policy = {"name": "k_of_n", "k": 2, "n": 3, "threshold": 0.5}
    engine = engines(settings={"guard": {"probe": str(probe_file), "policy": policy}})
    told = engine.answer([*engine.ids(PROMPTS[1]), *TURN], guard=question())
    assert "one reading can never halt" in told.stop_reason and not told.token_ids


def test_a_rethink_looks_ahead_behind_the_call_and_before_it(engines):
    engine = engines(settings={"guard": {"detector": "rethink"}})
    found = judged(engine.answer([*engine.ids(PROMPTS[1]), *TURN], guard=question()))
    assert 0 <= found["anydepth"]["score"] <= 1 and found["anydepth"]["before"] is not None
    alone = judged(engine.answer([*engine.ids(PROMPTS[1]), *TURN], guard=question(control=False)))
    assert alone["anydepth"]["score"] == pytest.approx(found["anydepth"]["score"], abs=1e-3)
    assert alone["anydepth"]["before"] is None
