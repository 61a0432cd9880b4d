"""The readings of a call come in any order, and are judged once all are there; and what is read for them."""

from types import SimpleNamespace
from typing import Any

import pytest

from anydepth import Threshold
from anydepth.audit.reading import read_records
from anydepth.config import GuardConfig
from anydepth.errors import BadRequest, ConfigError
from anydepth.policy import policy_from
from anydepth.settings import parse_settings
from anydepth.templates.prompt import Prompt
from anydepth.templates.proposed_call import CallPrompt, ProposedCall
from anydepth.templates.template import ChatTemplate
from anydepth.types import Score
from anydepth.vllm.engine.admission import Admission
from anydepth.vllm.engine.answer_report import answer_report
from anydepth.vllm.engine.gate_feed import GateFeed
from anydepth.vllm.engine.guarded_request import GuardedRequest, RequestStage
from anydepth.vllm.engine.pending_check import PendingCheck
from anydepth.vllm.gate_question import GateQuestion
from tests.tiny import tiny_tokenizer

SETUP: Any = SimpleNamespace(
    score=lambda values: Score(sum(values.values())), means=(), nothing=0.0, stages=((None, None),)
)
QUESTION = {"id": "gate-1", "tool": "f", "arguments": "{}", "prefill": 9, "before": 4}


def fed(*, before=4, control=True, stored=None, **options):
    call = CallPrompt(ProposedCall("f", {}), Prompt(tuple(range(19)), 9), before)
    guard = GuardConfig(policy=Threshold(0.5), **options)
    return GateFeed(guard, call, control, "m", ([] if stored is None else stored).append)


@pytest.mark.parametrize(
    ("before", "control", "depths"), [(4, True, (4, 9)), (0, True, (0, 9)), (4, False, (9,)), (0, False, (9,))]
)
def test_the_call_is_judged_once_every_depth_was_read(before, control, depths):
    stored: list[Any] = []
    feed = fed(before=before, control=control, stored=stored)
    assert feed.depths == depths and feed.due is None and not feed.begun
    feed.begin({4: Score(0.2)} if 4 in depths else {})
    if 0 in depths:
        feed.answer(0, Score(0.2))
    assert feed.due == 9 and not feed.over and not stored
    feed.answer(5, Score(0.9))
    assert not feed.over
    feed.answer(9, Score(0.7))
    (verdict,) = stored
    assert feed.over and feed.due is None and feed.verdict is verdict
    assert verdict.halt and verdict.score == 0.7 and verdict.before == (0.2 if control else None)
    feed.answer(9, Score(0.1))
    assert len(stored) == 1 and feed.released == []


def test_the_control_decides_nothing():
    feed = fed()
    feed.begin({4: RuntimeError("no")})
    feed.answer(9, Score(0.1))
    told = answer_report(feed, detector="probe", checks=False)
    assert told["gate"]["allowed"] and told["gate"]["anydepth"]["before"] is None and not told["halted"]


def test_a_token_that_was_sampled_all_the_same_goes_nowhere():
    feed = fed()
    feed.begin({4: Score(0.1)})
    feed.push([20, 21], "stop")
    assert feed.released == [] and not feed.over and feed.due == 9


def test_a_request_is_over_when_its_call_was_judged():
    feed = fed()
    own: Any = SimpleNamespace(request_id="own", num_output_placeholders=0)
    request = GuardedRequest(own, feed, feed.call.prompt, inside=(4,), at_zero=False)
    assert request.stage is RequestStage.DUE and request.first_depths == (4, 9)
    for depth, name, score in ((9, "one", 0.3), (4, "two", 0.2)):
        own = SimpleNamespace(request_id=name)
        request.pending.append(PendingCheck(depth, own, [(depth, 0)], {0: score}))
    request.conclude("one", SETUP)
    assert request.stage is RequestStage.CHECKING
    request.conclude("two", SETUP)
    found = answer_report(feed, detector="probe", checks=False)["gate"]
    assert request.stage is RequestStage.OVER and found["allowed"] and found["anydepth"]["before"] == 0.2


# -- admission ---------------------------------------------------------------------------------------------------------


def admitted(tmp_path, question, *, audit=None, policy=None, ids=19):
    tokenizer = tiny_tokenizer()
    table = {"audit": {"kind": "jsonl", "path": str(tmp_path / "audit.jsonl"), **(audit or {})}}
    setup: Any = SimpleNamespace(
        model=SimpleNamespace(template=ChatTemplate(tokenizer), end_token_ids=frozenset({2}), tokenizer=tokenizer),
        options=SimpleNamespace(settings=parse_settings(table), allow_unguarded=False),
        guard=GuardConfig(policy=policy or Threshold(0.5)),
        embeddings=None,
        room=7,
        reads=(),
    )
    request = SimpleNamespace(
        sampling_params=SimpleNamespace(extra_args={"anydepth": {"gate": question}}),
        prompt_token_ids=list(range(9, 9 + ids)),
        num_prompt_tokens=ids,
        prompt_embeds=None,
        resumable=False,
        max_tokens=1,
        request_id="cmpl-x-0",
    )
    admission = Admission(setup, 100, "m")
    guarded = admission.admit(request)
    assert guarded is not None
    return admission, guarded


@pytest.mark.parametrize(
    ("change", "inside", "zero"),
    [({}, (4,), False), ({"before": 0}, (), True), ({"before": 0, "control": False}, (), False)],
)
def test_only_what_is_asked_for_is_read(tmp_path, change, inside, zero):
    _, request = admitted(tmp_path, QUESTION | change)
    assert (request.inside, request.at_zero) == (inside, zero)
    assert request.prompt.prefill == 9 and isinstance(request.feed, GateFeed)


@pytest.mark.parametrize("text", [False, True])
def test_the_verdict_is_recorded(tmp_path, text):
    admission, request = admitted(tmp_path, QUESTION | {"arguments": '{"a": 1}'}, audit={"text": text})
    request.feed.begin({4: Score(0.2)})
    request.feed.answer(9, Score(0.7))
    admission.audit.close()
    (record,) = (each for each in read_records(tmp_path / "audit.jsonl") if each["kind"] == "gate")
    assert (record["id"], record["model"], record["tool"], record["allowed"]) == ("gate-1", "m", "f", False)
    assert record["verdict"]["score"] == 0.7 and record["before"] == 0.2 and record["prompt_tokens"] == 10
    assert ("messages" in record) is text and record.get("arguments") == ('{"a": 1}' if text else None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"before": 9}, "the call begins at 9"),
        ({"prefill": 19}, "a turn of 19 tokens"),
        ({"prefill": "9"}, "anydepth.gate.prefill"),
        ({"tool": None}, "anydepth.gate.tool"),
        ({"depth": 3}, "anydepth.gate.depth"),
    ],
)
def test_a_question_that_cannot_be_is_refused_by_name(tmp_path, change, said):
    with pytest.raises(BadRequest, match=said):
        admitted(tmp_path, QUESTION | change)
    with pytest.raises(BadRequest, match=r"anydepth\.gate"):
        admitted(tmp_path, "gate")


def test_a_policy_that_one_reading_cannot_halt_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="one reading can never halt"):
        admitted(tmp_path, QUESTION, policy=policy_from({"name": "k_of_n", "k": 2, "n": 3, "threshold": 0.5}))


def test_the_question_is_what_the_front_sends():
    question = GateQuestion.read(QUESTION)
    assert question.control and question.call(range(19)).prompt == Prompt(tuple(range(19)), 9)
    assert GateQuestion.read(question.model_dump()) == question
