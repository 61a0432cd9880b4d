"""What vLLM itself ends: a check request alone, and an answer in the step of its unsure check."""

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vllm is not installed here; docs/vllm.md says how to run these tests")

from vllm.v1.request import RequestStatus

from anydepth import LinearProbe, Rethink, Threshold
from anydepth.detectors import Cascade
from anydepth.vllm.engine.guarded_request import RequestStage
from tests.vllm import own_cascade
from tests.vllm.engine import monitor
from tests.vllm.model import PROMPTS
from tests.vllm.own_cascade import Words

OFF = {"guard": False}
WORDS = [int(each) for each in np.random.default_rng(2).integers(9, 250, 40)]
"""A text without a header: its check of depth 0 is a check request, and nothing else is under way meanwhile."""


def in_its_step(scheduler, request_id: str) -> None:
    """Have vLLM end a request with an error in the next step, as where an encoder's output is not as it should be."""
    scheduler.encoder_cache_mismatch_reqs.add(request_id)


def between_steps(scheduler, request_id: str) -> None:
    """Have vLLM end a request between two steps, as an abort does."""
    scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)


def steps_to_check_request(engine) -> str:
    """Step until a check request is under way; returns its id."""
    for _ in range(500):
        if engine.scheduler._check_requests:
            return next(iter(engine.scheduler._check_requests))
        engine.engine.step()
    raise AssertionError("no check request was made; take another request")


def nothing_left(engine) -> bool:
    scheduler = engine.scheduler
    return not (scheduler.requests or scheduler._guarded or scheduler._check_requests)


@pytest.fixture(scope="module")
def unsure(probe_file):
    """A cascade that is unsure of every score: each check asks for a look-ahead."""

    def make() -> Cascade:
        second = Rethink(max_new_tokens=6, matcher=Words())  # type: ignore[arg-type]
        return Cascade(LinearProbe.load(probe_file), second, 0.0, 1.0, policy=Threshold(1.0))

    own_cascade.making.append(make)
    yield {"detector": "tests.vllm.own_cascade:made"}
    own_cascade.making.clear()


@pytest.mark.parametrize("end", [between_steps, in_its_step])
@pytest.mark.parametrize("prefill", [0, 23])
def test_a_check_request_that_vllm_ends_alone_halts_its_answer(engines, end, prefill):
    engine = engines(settings=None)
    ids = [*engine.ids(PROMPTS[4]), *WORDS[:prefill]] if prefill else WORDS
    name = engine.add(ids, guard={"interval": 10, "checks": True})
    end(engine.scheduler, steps_to_check_request(engine))
    answer = engine.run()[name]
    assert answer.halted and not answer.token_ids
    assert answer.report["reason"] == "error" and answer.report["error"] == "CheckError"
    assert nothing_left(engine)
    engine.verified()


@pytest.mark.parametrize("end", [between_steps, in_its_step])
def test_a_guard_that_fails_open_goes_on_without_the_check_request(engines, probe_file, end):
    engine = engines(settings={"guard": {"probe": str(probe_file), "on_error": "open"}})
    plain = engine.answer(WORDS, guard=OFF, ignore_eos=True)
    name = engine.add(WORDS, guard=monitor(interval=10), ignore_eos=True)
    end(engine.scheduler, steps_to_check_request(engine))
    answer = engine.run()[name]
    assert answer.token_ids == plain.token_ids and not answer.halted and answer.report["failed_checks"] == 1
    failed = [each["depth"] for each in answer.report["timeline"] if each["score"] is None]
    assert failed == [0] and nothing_left(engine)
    engine.verified()


@pytest.mark.parametrize("end", [between_steps, in_its_step])
def test_a_look_ahead_that_vllm_ends_alone_halts_its_answer(engines, unsure, end):
    engine = engines(settings={"guard": unsure})
    others = [engine.add(each, guard=monitor(interval=7), max_tokens=20, ignore_eos=True) for each in PROMPTS[1:3]]
    name = engine.add(PROMPTS[0], guard={"interval": 5, "checks": True}, max_tokens=30, ignore_eos=True)
    engine.engine.step()
    guarded = next(each for each in engine.scheduler._guarded.values() if each.feed.account.id == name)
    for _ in range(500):
        if guarded.depth >= 5 and guarded.check_requests:
            break
        engine.engine.step()
    (asked,), due = guarded.check_requests, guarded.feed.due
    end(engine.scheduler, asked)
    told = engine.run()
    answer = told[name]
    assert answer.halted and answer.report["reason"] == "error" and answer.report["depth"] == due
    assert len(answer.token_ids) < answer.report["depth"] and answer.report["timeline"][-1]["stage"] == "rethink"
    assert all(len(told[each].token_ids) == 20 and not told[each].report["failed_checks"] for each in others)
    assert nothing_left(engine)
    engine.verified()


def grammar_refuses(engine, request_id: str, monkeypatch) -> None:
    """Have vLLM end a request with an error where it takes the step's token, as it does if a grammar refuses that."""
    manager = engine.scheduler.structured_output_manager
    whole = manager.accept_tokens
    monkeypatch.setattr(
        manager,
        "accept_tokens",
        lambda request, tokens: request.request_id != request_id and whole(request, tokens),
    )


@pytest.mark.parametrize("how", ["encoder", "grammar"])
def test_an_answer_that_vllm_ends_in_the_step_of_an_unsure_check_asks_nobody(engines, unsure, monkeypatch, how):
    engine = engines(settings={"guard": unsure})
    scheduler, take, ended = engine.scheduler, engine.scheduler._take, []

    def taking(*args):
        """As the scheduler does; then the first answer that is unsure behind its first token is given up."""
        take(*args)
        for request_id, guarded in scheduler._guarded.items():
            if not ended and guarded.stage is RequestStage.UNSURE and guarded.depth >= 4:
                ended.append(guarded)
                if how == "encoder":
                    in_its_step(scheduler, request_id)
                else:
                    grammar_refuses(engine, request_id, monkeypatch)

    monkeypatch.setattr(scheduler, "_take", taking)
    names = [engine.add(each, guard=monitor(interval=4), max_tokens=20, ignore_eos=True) for each in PROMPTS[:2]]
    told = engine.run()
    (guarded,) = ended
    gone = guarded.feed.account.id
    (kept,) = set(names) - {gone}
    assert told[gone].finish_reason == "error" and engine.record(gone)["outcome"] == "error"
    assert guarded.stage is RequestStage.UNSURE and not guarded.check_requests, "nobody was asked about it"
    assert len(told[kept].token_ids) == 20 and told[kept].report["failed_checks"] == 0
    assert nothing_left(engine)
    engine.verified()
