"""A guarded request says what it waits for, and brings its checks to the flow once none is under way."""

from types import SimpleNamespace

import numpy as np
import pytest

from anydepth import Every, Threshold
from anydepth.audit.answer import Account
from anydepth.audit.trail import Audit
from anydepth.backends.protocol import WHOLE
from anydepth.config import GuardConfig
from anydepth.templates.template import Prompt
from anydepth.types import Score
from anydepth.vllm.engine.flow_feed import FlowFeed
from anydepth.vllm.engine.guarded_request import GuardedRequest, RequestStage
from anydepth.vllm.engine.pending_check import PendingCheck

SETUP = SimpleNamespace(score=lambda values: Score(sum(values.values())), means=(), nothing=0.0)


def guarded(*, prefill=0):
    guard = GuardConfig(policy=Threshold(0.5), schedule=Every(4, doubling=False))
    prompt = Prompt(tuple(range(10 + prefill)), prefill)
    account = Account(Audit(None), "a", 0, "vllm", "m", prompt, guard, frozenset())
    feed = FlowFeed(guard.plan(max_new_tokens=8, prefill=prefill), account, 10, frozenset())
    return GuardedRequest(SimpleNamespace(request_id="own"), feed, prompt)


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
    setup = SimpleNamespace(score=SETUP.score, means=((1, -2), (0, WHOLE)), nothing=0.0)
    request = guarded(prefill=9)
    request.pending = [PendingCheck(depth, SimpleNamespace(request_id="one"), []) for depth in (9, 4, 1, 0)]
    request.tokens.add(10, np.array([[n, n / 100] for n in range(9)]) / 100)
    request.conclude("one", setup)
    found = {each["depth"]: each["score"] for each in request.feed.account.checks}
    assert found == pytest.approx({0: 0, 1: 0, 4: 0.025 + 0.00015, 9: 0.075 + 0.0004})


def test_tokens_that_no_later_check_can_need_are_dropped():
    setup = SimpleNamespace(score=SETUP.score, means=((0, -3),), nothing=0.0)
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
    setup = SimpleNamespace(score=SETUP.score, means=((0, -2),), nothing=0.0)
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
    request.request.num_tokens = 19
    assert request.token_reader == "own" and request.unread_tokens == range(10, 19)
    request.pending = [check(9, "one", 0.1), check(4, "two", 0.1), check(0, "one", 0.1)]
    assert request.token_reader == "own"
    request.held = True
    request.tokens.add(10, np.zeros((3, 1)))
    assert request.token_reader == "one" and request.unread_tokens == range(13, 19)
    request.conclude("one", SETUP)
    request.conclude("two", SETUP)
    assert request.token_reader == "own"
