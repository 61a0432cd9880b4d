"""A guarded request says what it waits for, and brings its checks to the flow once none is under way."""

from types import SimpleNamespace

import numpy as np
import pytest

from anydepth import Adaptive, Every, Threshold
from anydepth.audit.answer import Account
from anydepth.audit.trail import Audit
from anydepth.backends.protocol import WHOLE
from anydepth.config import GuardConfig
from anydepth.templates.template import Prompt
from anydepth.types import Score
from anydepth.vllm.engine.flow_feed import FlowFeed
from anydepth.vllm.engine.guarded_request import GuardedRequest, NextStep, RequestStage
from anydepth.vllm.engine.pending_check import PendingCheck

SETUP = SimpleNamespace(score=lambda values: Score(sum(values.values())), means=(), nothing=0.0, stages=((None, None),))


def guarded(*, prefill=0):
    guard = GuardConfig(policy=Threshold(0.5), schedule=Every(4, doubling=False))
    prompt = Prompt(tuple(range(10 + prefill)), prefill)
    account = Account(Audit(None), "a", 0, "vllm", "m", prompt, guard, frozenset())
    feed = FlowFeed(guard.plan(max_new_tokens=8, prefill=prefill), account, frozenset())
    own = SimpleNamespace(request_id="own", num_output_placeholders=0)
    return GuardedRequest(own, feed, prompt)


def running(*, schedule=None, most=8):
    """A guarded request whose prompt of ten tokens is computed and was found harmless."""
    guard = GuardConfig(policy=Threshold(0.5), schedule=schedule or Every(4, doubling=False))
    prompt = Prompt(tuple(range(10)), 0)
    account = Account(Audit(None), "a", 0, "vllm", "m", prompt, guard, frozenset())
    feed = FlowFeed(guard.plan(max_new_tokens=most, prefill=0), account, frozenset({2}))
    feed.begin({})
    feed.answer(0, Score(0.1))
    own = SimpleNamespace(
        request_id="own", num_output_placeholders=0, num_output_tokens=0, num_tokens=10, num_computed_tokens=10,
        num_in_flight_tokens=0, num_stale_output_tokens=0, drop_stale_output=False,
    )  # fmt: skip
    return GuardedRequest(own, feed, prompt)


def schedule_step(request):
    """What vLLM's asynchronous scheduler notes when it schedules a decode step."""
    own = request.request
    own.num_computed_tokens = own.num_tokens + own.num_output_placeholders
    own.num_output_placeholders += 1
    own.num_in_flight_tokens += 1


def step_comes(request, token, ended=None):
    """A step's token comes to the scheduler."""
    own = request.request
    own.num_output_placeholders -= 1
    own.num_in_flight_tokens -= 1
    own.num_tokens += 1
    own.num_output_tokens += 1
    request.feed.push([token], ended)


def check(depth, name, *values):
    places = [(depth, index) for index in range(len(values))]
    return PendingCheck(depth, SimpleNamespace(request_id=name), places, dict(enumerate(values)))


def test_a_prefill_begins_when_all_check_requests_have_answered():
    request = guarded(prefill=9)
    assert request.stage is RequestStage.DUE and not request.feed.begun
    request.pending = [check(4, "one", 0.1), check(8, "two", 0.2), check(9, "three", 0.3), check(0, "three", 0.05)]
    assert list(request.check_requests) == ["one", "two", "three"] and request.stage is RequestStage.CHECKING
    for name in ("three", "one"):
        request.conclude(name, SETUP)
        assert request.stage is RequestStage.CHECKING and not request.feed.begun
    request.conclude("two", SETUP)
    assert request.stage is RequestStage.FREE and not request.pending
    assert [(each["depth"], each["score"]) for each in request.feed.account.checks] == [
        (0, 0.05),
        (4, 0.1),
        (8, 0.2),
        (9, 0.3),
    ]


@pytest.mark.parametrize("failed", [True, False])
def test_a_check_request_that_was_not_finished_is_a_failed_check(failed):
    request = guarded(prefill=9)
    request.pending = [check(9, "one", 0.1), check(0, "one", 0.1)]
    request.conclude("one", SETUP, failed=failed)
    assert request.stage is (RequestStage.OVER if failed else RequestStage.FREE) and request.feed.halted is failed


def test_a_check_in_the_request_itself():
    request = guarded()
    request.feed.begin({})
    assert request.stage is RequestStage.DUE
    request.pending = [PendingCheck(0, request.request, [(9, 0)])]
    assert request.stage is RequestStage.CHECKING and not request.check_requests
    request.pending[0].take({("own", 9, 0): 0.2, ("other", 9, 0): 0.9})
    request.conclude("own", SETUP)
    assert request.stage is RequestStage.FREE
    request.feed.push([20, 21, 22, 23])
    assert request.stage is RequestStage.DUE
    request.pending = [PendingCheck(4, request.request, [(14, 0)])]
    request.conclude("own", SETUP)  # the worker said nothing
    assert request.stage is RequestStage.OVER and request.feed.halted and request.feed.released == []


def test_the_means_of_a_check_are_those_of_the_answer_before_it():
    setup = SimpleNamespace(score=SETUP.score, means=((1, -2), (0, WHOLE)), nothing=0.0, stages=SETUP.stages)
    request = guarded(prefill=9)
    request.pending = [PendingCheck(depth, SimpleNamespace(request_id="one"), []) for depth in (9, 4, 1, 0)]
    request.tokens.add(10, np.array([[n, n / 100] for n in range(9)]) / 100)
    request.conclude("one", setup)
    found = {each["depth"]: each["score"] for each in request.feed.account.checks}
    assert found == pytest.approx({0: 0, 1: 0, 4: 0.025 + 0.00015, 9: 0.075 + 0.0004})


def test_tokens_that_no_later_check_can_need_are_dropped():
    setup = SimpleNamespace(score=SETUP.score, means=((0, -3),), nothing=0.0, stages=SETUP.stages)
    request = guarded(prefill=9)
    request.tokens.add(10, np.arange(9.0)[:, None] / 100)
    request.forget(3)
    assert request.tokens.dropped == 0  # the flow has not begun: its depths inside the prefill are still to be checked
    request.pending = [PendingCheck(depth, SimpleNamespace(request_id="one"), []) for depth in (9, 4, 0)]
    request.forget(3)
    assert request.tokens.dropped == 0
    request.conclude("one", setup)
    request.forget(3)
    assert request.tokens.dropped == 6 and request.tokens.next == 19
    for first, sampled in ((19, [30]), (20, [31]), (21, [32])):  # one token is read while the next is sampled
        request.feed.push(sampled)
        request.tokens.add(first, np.array([[0.1]]))
        request.forget(3)
    assert request.tokens.dropped == 9 and request.tokens.read == 12
    request.feed.push([33])
    assert request.stage is RequestStage.DUE and request.feed.due == 13
    request.forget(3)
    assert request.tokens.dropped == 9
    request.pending = [PendingCheck(13, request.request, [])]
    request.tokens.add(22, np.array([[0.4]]))
    request.conclude("own", setup)
    request.forget(3)
    assert request.feed.account.checks[-1]["score"] == pytest.approx(0.2) and request.tokens.dropped == 10
    request.forget(10**6)
    assert request.tokens.dropped == 10


@pytest.mark.parametrize("missing", ["all", "the last"])
def test_a_mean_over_a_token_that_was_not_read_is_a_failed_check(missing):
    setup = SimpleNamespace(score=SETUP.score, means=((0, -2),), nothing=0.0, stages=SETUP.stages)
    request = guarded()
    request.feed.begin({})
    request.pending = [PendingCheck(0, request.request, [])]
    request.conclude("own", setup)
    request.feed.push([20, 21, 22, 23])
    request.tokens.add(10, np.zeros((0 if missing == "all" else 3, 1)))
    request.pending = [PendingCheck(4, request.request, [])]
    request.conclude("own", setup)
    assert request.stage is RequestStage.OVER and request.feed.halted and request.feed.error == "CheckError"


def test_the_answer_is_read_in_the_request_that_runs_all_of_it():
    request = guarded(prefill=9)
    request.request.num_tokens = 18
    request.request.num_output_placeholders = 1  # a token that a step under way is sampling is read by the next one
    assert request.token_reader == "own" and request.unread_tokens == range(10, 19)
    request.pending = [check(9, "one", 0.1), check(4, "two", 0.1), check(0, "one", 0.1)]
    assert request.token_reader == "own"
    request.held = True
    request.tokens.add(10, np.zeros((3, 1)))
    assert request.token_reader == "one" and request.unread_tokens == range(13, 19)
    request.conclude("one", SETUP)
    request.conclude("two", SETUP)
    assert request.token_reader == "own"


def test_a_check_rides_one_step_before_its_depth_is_known_and_the_next_step_does_not_wait_for_it():
    request = running()
    for token in range(3):  # the step that comes next is scheduled before the token of the one before is there
        assert request.next_step is NextStep.DECODE
        schedule_step(request)
        if token:
            step_comes(request, 20 + token)
    assert request.depth == 2 and request.depth_soon == 3 and request.next_step is NextStep.DECODE
    schedule_step(request)
    assert request.depth_soon == 4 and request.next_step is NextStep.CHECK and request.known_soon == 14
    request.pending = [PendingCheck(4, request.request, [(14, 0)], {0: 0.2}, step="ride")]
    schedule_step(request)
    step_comes(request, 23)
    step_comes(request, 24)
    assert request.feed.due == 4 and request.stage is RequestStage.CHECKING
    assert request.feed.reach == 8 and request.next_step is NextStep.DECODE  # decoded, never released if it halts
    schedule_step(request)
    assert request.feed.released == []
    request.conclude("own", SETUP)
    assert len(request.feed.released) == 4 and request.feed.due is None


@pytest.mark.parametrize("schedule", [Every(1), Adaptive()])
def test_a_request_sits_out_when_a_check_may_be_due_before_the_verdict_of_the_one_before(schedule):
    request = running(schedule=schedule)
    schedule_step(request)
    assert request.depth_soon == 1 and request.next_step is NextStep.CHECK
    request.pending = [PendingCheck(1, request.request, [(11, 0)], {0: 0.2}, step="ride")]
    schedule_step(request)
    step_comes(request, 20)
    assert request.next_step is NextStep.SIT_OUT
    request.conclude("own", SETUP)
    assert request.next_step is (NextStep.CHECK if isinstance(schedule, Every) else NextStep.DECODE)


def test_the_last_check_of_a_full_answer_rides_ahead_and_nothing_is_decoded_behind_it():
    request = running(most=2)
    schedule_step(request)
    schedule_step(request)
    step_comes(request, 20)
    assert request.depth_soon == 2 == request.feed.reach and request.next_step is NextStep.CHECK
    request.pending = [PendingCheck(2, request.request, [(12, 0)], {0: 0.2}, step="ride")]
    schedule_step(request)
    step_comes(request, 21, "length")
    request.ending = ("capped", None)
    assert request.next_step is NextStep.SIT_OUT and not request.drop_ahead()
    request.conclude("own", SETUP)
    assert request.feed.over and request.feed.released == [20, 21]


def test_what_was_scheduled_behind_an_end_that_nobody_knew_is_dropped():
    request = running()
    schedule_step(request)
    schedule_step(request)
    request.pending = [PendingCheck(4, request.request, [(14, 0)], step="ride")]
    step_comes(request, 2, "stop")
    request.ending = ("stopped", None)
    assert request.feed.due is None and request.feed.over  # depth 0 again: the same state, the same reading
    request = running()
    for _ in range(2):
        schedule_step(request)
    step_comes(request, 20)
    schedule_step(request)
    request.pending = [PendingCheck(4, request.request, [(14, 0)], step="ride")]
    step_comes(request, 2, "stop")
    request.ending = ("stopped", None)
    own = request.request
    assert request.feed.due == 1 and request.drop_ahead() and not request.pending
    assert (own.num_computed_tokens, own.num_output_placeholders) == (11, 0)
    assert own.drop_stale_output and own.num_stale_output_tokens == own.num_in_flight_tokens == 1
    own.num_tokens, own.num_output_tokens = 11, 1  # `take_off_end`
    assert request.stage is RequestStage.DUE and request.next_step is NextStep.CHECK
    own.num_output_tokens = 2
    assert request.next_step is NextStep.OVERDUE


def test_a_held_request_without_a_check_under_way_is_to_be_attended_to():
    request = guarded(prefill=9)
    assert not request.held_idle
    request.held, request.pending = True, [check(9, "one", 0.3), check(0, "two", 0.2)]
    request.conclude("one", SETUP, failed=True)
    assert not request.held_idle, "the other check request will end"
    request.conclude("two", SETUP)
    assert request.held_idle and request.stage is RequestStage.OVER and request.feed.error == "CheckError"
