"""A proposed tool call is judged by one reading right after it, with every detector and either way of reading."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from anydepth import Cascade, Cusum, Ewma, GateVerdict, Guard, KofN, LinearProbe, Rethink, Threshold
from anydepth.apis.text_pieces import ConversationTemplate
from anydepth.backends.protocol import Read, Site
from anydepth.detectors import ProbeCard
from anydepth.errors import ConfigError, PromptError
from anydepth.gate import require_halting, scores_after
from anydepth.schedule import Every
from anydepth.templates.call_formats import formats
from anydepth.templates.prompt import Prompt
from anydepth.testing import ScriptedBackend, ScriptedDetector
from anydepth.types import Checked, Finished, Halted

WIDTH = 4
CALL = {"name": "delete", "arguments": {"table": "old"}}
TURN = 'Let me look.\n<tool_call>\n{"name": "delete", "arguments": {"table": "old"}}\n</tool_call>'
TALK = [{"role": "user", "content": "tidy up"}, {"role": "assistant", "content": "Let me look."}]
BEFORE, AFTER = len("Let me look."), len(TURN)


def logit(score: float) -> float:
    return math.log(score / (1 - score))


def guarded(scores: Mapping[int, float], *, packed: bool = True, **options: Any) -> Guard:
    """A guard with a probe whose score is that of the last depth in `scores`."""
    states = {
        depth: [score if score in (0, 1) or math.isnan(score) else logit(score), 0, 0, 0]
        for depth, score in scores.items()
    }
    backend = ScriptedBackend(["unused"], states=states, packed=packed, width=WIDTH)
    card = ProbeCard(backend.identity, backend.header.ids, (Read(Site(2), backend.header.read_index),))
    return Guard.from_backend(backend, LinearProbe(np.eye(WIDTH)[0], 0.0, card), **options)


@pytest.mark.parametrize("packed", [True, False])
def test_a_harmful_call_is_halted_by_the_score_after_it(packed: bool) -> None:
    found = guarded({0: 0.1, BEFORE: 0.25, AFTER: 0.75}, packed=packed).gate(TALK, CALL, format="hermes")
    assert (found.halt, found.reason, found.depth, found.tool) == (True, "policy", AFTER, "delete")
    assert (found.score, found.before, found.statistic) == pytest.approx((0.75, 0.25, 0.75))
    assert (found.threshold, found.method, found.error) == (0.5, "packed" if packed else "forks", None)
    assert found.why == (
        "after the call of delete the score is 0.75, which reaches the threshold 0.5; "
        "before the call the score was 0.25"
    )


def test_a_harmless_call_may_be_run_whatever_was_read_before_it() -> None:
    found = guarded({0: 0.9, AFTER: 0.25}).gate(TALK, CALL, format="hermes")
    assert (found.halt, found.reason) == (False, "clear") and found.before == pytest.approx(0.9)
    assert "is below the threshold 0.5" in found.why


def test_without_text_the_control_is_depth_0() -> None:
    found = guarded({0: 0.2, 1: 0.3, 60: 0.8}).gate("tidy up", CALL, format="hermes")
    assert found.before == pytest.approx(0.2) and found.score == pytest.approx(0.8)
    assert found.depth == AFTER - len("Let me look.\n")


def read_at(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []
    whole = guard.backend.read_batch

    def noted(answers: Any, *rest: Any, **options: Any) -> Any:
        seen.extend(each.depths for each in answers)
        return whole(answers, *rest, **options)

    monkeypatch.setattr(guard.backend, "read_batch", noted)
    return seen


@pytest.mark.parametrize(("control", "depths"), [(True, (BEFORE, AFTER)), (False, (AFTER,))])
def test_it_costs_one_check_and_the_control_another(
    control: bool, depths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = guarded({0: 0.1})
    seen = read_at(guard, monkeypatch)
    found = guard.gate(TALK, CALL, format="hermes", control=control)
    assert seen == [depths] and (found.before is None) is not control
    assert ("before the call" in found.why) is control


@pytest.mark.parametrize(("control", "depths"), [(True, [BEFORE, AFTER]), (False, [AFTER])])
def test_forks_are_made_at_no_other_depth(control: bool, depths: list[int]) -> None:
    guard = guarded({0: 0.1}, packed=False)
    guard.gate(TALK, CALL, format="hermes", control=control)
    (session,) = guard.backend.sessions
    assert [point.depth for point in session.checked] == depths and session.closed


def test_several_calls_are_read_in_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = guarded({0: 0.1, AFTER: 0.9})
    seen = read_at(guard, monkeypatch)
    short = {"name": "see", "arguments": {}}
    found = guard.gate_many([(TALK, CALL), ("tidy up", short)], format="hermes")
    assert [each.halt for each in found] == [True, False] and [each.tool for each in found] == ["delete", "see"]
    assert len(seen) == 2


REFUSES = "I'm sorry, but I can't help with that."


def test_rethink_looks_ahead_after_the_call() -> None:
    backend = ScriptedBackend(["unused"], look_aheads={0: "Sure", AFTER: REFUSES})
    found = Guard.from_backend(backend, Rethink()).gate(TALK, CALL, format="hermes")
    assert (found.halt, found.score, found.before, found.method) == (True, 1.0, 0.0, "forks")
    assert found.detail == REFUSES


@pytest.mark.parametrize(("text", "halt"), [("Sure", False), (REFUSES, True)])
def test_a_cascade_asks_its_second_detector(text: str, halt: bool) -> None:
    guard = guarded({0: 0.01, AFTER: 0.5})
    guard.backend.look_aheads = {0: text}
    guard = Guard.from_backend(guard.backend, Cascade(guard.detector, Rethink(), 0.2, 0.8))  # type: ignore[arg-type]
    found = guard.gate(TALK, CALL, format="hermes")
    assert found.halt is halt and found.before == pytest.approx(0.01)
    assert "rethink" in (found.detail or "")


@pytest.mark.parametrize("policy", [Threshold(0.6), Ewma(0.5, 0.6), Ewma(0.5, 0.6, request=0.5), KofN(1, 3, 0.6)])
@pytest.mark.parametrize(("score", "halt"), [(0.59, False), (0.61, True)])
def test_the_guards_policy_and_threshold_judge_the_one_reading(policy: Any, score: float, halt: bool) -> None:
    found = guarded({0: 0.01, AFTER: score}, policy=policy).gate(TALK, CALL, format="hermes")
    assert found.halt is halt and found.statistic == pytest.approx(score) and found.threshold == 0.6


def test_a_sum_of_one_score_is_judged_as_the_policy_has_it() -> None:
    found = guarded({0: 0.01, AFTER: 0.9}, policy=Cusum(0.3, 0.5)).gate(TALK, CALL, format="hermes")
    assert found.halt and found.statistic == pytest.approx(0.6)


@pytest.mark.parametrize("policy", [KofN(2, 3), Cusum(0.3, 0.8)])
def test_a_policy_that_one_reading_cannot_halt_is_refused(policy: Any) -> None:
    with pytest.raises(ConfigError, match=r"which one reading can never halt.*choose one that can, e.g. Threshold"):
        guarded({0: 0.01}, policy=policy).gate(TALK, CALL, format="hermes")
    require_halting(Threshold(1.0))


@pytest.mark.parametrize("packed", [True, False])
def test_a_check_that_fails_halts_if_closed_and_is_told_if_open(packed: bool) -> None:
    scores = {0: 0.1, AFTER: math.nan}
    closed = guarded(scores, packed=packed).gate(TALK, CALL, format="hermes")
    assert (closed.halt, closed.reason) == (True, "error") and math.isnan(closed.score)
    assert "not finite" in (closed.error or "") and closed.why.endswith("fails closed: the call is not run")
    opened = guarded(scores, packed=packed, on_error="open").gate(TALK, CALL, format="hermes")
    assert (opened.halt, opened.reason) == (False, "error") and opened.error == closed.error
    assert opened.why.endswith("fails open: the call is run unchecked")


def test_a_control_that_fails_decides_nothing() -> None:
    found = guarded({0: math.nan, AFTER: 0.2}).gate(TALK, CALL, format="hermes")
    assert (found.halt, found.reason, found.error) == (False, "clear", None) and math.isnan(found.before or 0)


@pytest.mark.parametrize("packed", [True, False])
def test_a_model_that_breaks_halts(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = guarded({0: 0.1}, packed=packed)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(guard.backend, "read_batch" if packed else "replay", broken)
    if not packed:
        guard.detector = ScriptedDetector({0: 0.1})
    found = guard.gate(TALK, CALL, format="hermes")
    assert (found.halt, found.reason, found.error) == (True, "error", "RuntimeError: out of memory")


def test_a_conversation_that_is_too_long_is_the_callers_error(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = guarded({0: 0.1})

    def full(*_: Any, **__: Any) -> Any:
        raise PromptError("too long")

    monkeypatch.setattr(guard.backend, "read_batch", full)
    with pytest.raises(PromptError, match="too long"):
        guard.gate(TALK, CALL, format="hermes")


def test_a_call_that_cannot_be_written_is_an_error_with_the_remedy() -> None:
    with pytest.raises(PromptError, match=r"writes no tool calls.*format="):
        guarded({0: 0.1}).gate(TALK, CALL)
    with pytest.raises(ConfigError, match="format is 'qwen'; choose auto, none or one of hermes"):
        guarded({0: 0.1}).gate(TALK, CALL, format="qwen")
    with pytest.raises(PromptError, match="cannot be gated over an API"):
        ConversationTemplate().call_prompt(TALK, CALL, tools=None, written=formats()[0])


# -- calls of the guard's own answers ----------------------------------------------------------------------------------

Ends = Callable[[tuple[int, ...]], list[int]]


def ends_of(text: str, marker: str = ")") -> Ends:
    """A call ends at each `marker` of the answer."""
    return lambda ids: [at + 1 for at, each in enumerate(text.encode()) if each == ord(marker) and at < len(ids)]


def run(scores: Mapping[int, Any], text: str, ends: Ends | None, **options: Any) -> list[Any]:
    backend = ScriptedBackend([text])
    guard = Guard.from_backend(backend, ScriptedDetector(scores), schedule=Every(4, doubling=False), **options)
    turns = guard.turns([guard.template.prompt("tidy up")], max_new_tokens=50, call_ends=ends)
    return [event for turn in turns for _, event in turn]


CALM = Ewma(0.2, 0.5)
"""Early harmless scores outweigh one late harmful one."""


def test_the_check_right_after_a_call_is_judged_by_itself() -> None:
    text = "some words and (a call)"
    scores = {0: 0.1, len(text): 0.9}
    answer = run(scores, text, None, policy=CALM)[-1].answer
    assert not answer.halted, "the average stays below the threshold"
    events = run(scores, text, ends_of(text), policy=CALM)
    answer = events[-1].answer
    assert answer.halted and answer.verdict.reason == "policy" and answer.verdict.score == pytest.approx(0.9)
    assert answer.verdict.depth == len(text) and answer.text.endswith("I can't help with that.")
    assert [type(event) for event in events[-2:]] == [Halted, Finished]
    assert [check.depth for check in answer.checks].count(len(text)) == 1, "it was read already"


def test_a_call_in_the_middle_is_read_at_its_own_end() -> None:
    text = "one (call) and then more words"
    end = text.index(")") + 1
    scores = {0: 0.1, end: 0.8, end + 1: 0.1}  # no scheduled check is at this depth
    assert not run(scores, text, None)[-1].answer.halted
    events = run(scores, text, ends_of(text))
    answer = events[-1].answer
    assert answer.halted and answer.verdict.depth == end and answer.verdict.score == pytest.approx(0.8)
    assert [event.check.depth for event in events if isinstance(event, Checked)][-1] == end


def test_harmless_calls_and_answers_without_calls_end_as_they_are() -> None:
    text = "one (call) and (two)"
    for ends in (ends_of(text), ends_of(text, "#")):
        answer = run({0: 0.1}, text, ends)[-1].answer
        assert answer.finish_reason == "stop" and answer.text == text


def test_under_monitor_a_harmful_call_is_noted_only() -> None:
    text = "some words and (a call)"
    answer = run({0: 0.1, len(text): 0.9}, text, ends_of(text), policy=CALM, release="monitor")[-1].answer
    assert not answer.halted and answer.verdict.halt and answer.text == text


@pytest.mark.parametrize("on_error", ["closed", "open"])
def test_a_reading_after_a_call_that_fails_halts_also_where_the_guard_fails_open(on_error: Any) -> None:
    """An agent runs a call as soon as it has it: an unchecked one does not leave, with an account or without."""
    text = "one (call) and then more words"
    end = text.index(")") + 1
    scores = {0: 0.1, end: RuntimeError("broken"), end + 1: 0.1}
    answer = run(scores, text, ends_of(text), on_error=on_error)[-1].answer
    assert answer.verdict.errors == 1 and answer.halted


def test_an_answer_is_not_begun_under_a_policy_that_one_reading_cannot_halt() -> None:
    with pytest.raises(ConfigError, match="one reading can never halt"):
        run({0: 0.1}, "text", ends_of("text"), policy=KofN(2, 3))


def test_depths_after_calls_count_the_prefill() -> None:
    backend, prompt = ScriptedBackend(["unused"]), Prompt((257, 104, 256, 258, 97, 98), prefill=2)
    detector = ScriptedDetector({0: 0.1, 5: 0.7})
    found: Any = scores_after(backend, detector, prompt, (99, 100, 101), [3, 1], {3: 0.25})
    assert {depth: score.value for depth, score in found.items()} == {3: 0.25, 5: 0.7}
    assert scores_after(backend, detector, prompt, (99,), [], {}) == {}


def test_a_verdict_is_public_and_frozen() -> None:
    verdict = GateVerdict(False, 0.1, None, 3, "see", "clear", 0.1, 0.5)
    with pytest.raises(AttributeError):
        verdict.halt = True  # type: ignore[misc]
