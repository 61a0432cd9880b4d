"""Replays over a scripted backend: the outcome is the live guard's, whatever the answer, schedule and policy."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anydepth import Cusum, Every, Ewma, Guard, KofN, Threshold
from anydepth.config import GuardConfig
from anydepth.evals.arms.replay import Detecting, Point, check_depths, halted, leaked, replay
from anydepth.evals.transcript import Transcript
from anydepth.flow import Outcome
from anydepth.schedule import Adaptive, Listed
from anydepth.templates.template import Prompt
from anydepth.testing import END, ScriptedBackend, ScriptedDetector
from anydepth.types import FinishReason, Score

PROMPT = "hi"
SCORES = st.lists(st.sampled_from([0.1, 0.3, 0.45, 0.55, 0.8, 1.0]), min_size=70, max_size=70)
POLICIES = st.sampled_from([Threshold(0.8), Threshold(1.0), KofN(2, 3, 0.5), Ewma(0.4, 0.6), Cusum(0.4, 1.2)])
SCHEDULES = st.sampled_from(
    [Every(4), Every(7, doubling=False), Every(25), Listed((3, 9)), Adaptive(closest=2, widest=9)]
)


def transcript(length: int, prefill: int = 0, *, ends: bool = False, reason: FinishReason = "length") -> Transcript:
    """An answer of `length` tokens after a prefill, of the scripted tokenizer's."""
    question = ScriptedBackend(["x"]).template.prompt(PROMPT)
    prompt = Prompt((*question.ids, *b"p" * prefill), prefill)
    return Transcript("t", prompt, tuple(b"a" * length), "stop" if ends else reason, int(ends))


def replayed(found: Transcript, scores: Any, config: GuardConfig, *, ahead: bool = True) -> Outcome:
    defence = Detecting("arm", ScriptedBackend(["x"] * 99), ScriptedDetector(scores))
    return replay(defence, [found], config, ahead=ahead)["t"]


@settings(deadline=None)
@given(
    length=st.integers(1, 40),
    prefill=st.integers(0, 20),
    ends=st.booleans(),
    scores=SCORES,
    policy=POLICIES,
    schedule=SCHEDULES,
    release=st.sampled_from(["hold", "eager", "monitor"]),
    ahead=st.booleans(),
    at_most=st.lists(st.integers(1, 9), max_size=3),
)
def test_ends_as_the_live_guard_does(
    length: int,
    prefill: int,
    ends: bool,
    scores: list[float],
    policy: Any,
    schedule: Any,
    release: Any,
    ahead: bool,
    at_most: list[int],
) -> None:
    answer = (*b"a" * length, *([END] if ends else []))
    detector = ScriptedDetector(lambda row, depth: scores[depth])
    backend = ScriptedBackend([answer], finish="length", at_most=at_most)
    guard = Guard.from_backend(backend, detector, policy=policy, schedule=schedule, release=release)
    live = guard.generate(PROMPT, prefill="p" * prefill or None, max_new_tokens=len(answer))
    config = GuardConfig(policy=policy, schedule=schedule, release=release)
    found = replayed(transcript(length, prefill, ends=ends), lambda row, depth: scores[depth], config, ahead=ahead)
    assert (found.checks, found.windows, found.verdict) == (live.checks, live.windows, live.verdict)
    assert (found.finish_reason, found.generated) == (live.finish_reason, live.generated_tokens)
    if release != "monitor" and live.halted:
        assert leaked(found) == live.leak


def test_no_check_is_made_behind_a_halt_in_rounds() -> None:
    asked: list[int] = []

    def score(row: int, depth: int) -> float:
        asked.append(depth)
        return 1.0 if depth >= 4 else 0.0

    config = GuardConfig(schedule=Every(4))
    assert replayed(transcript(20), score, config, ahead=False).verdict.depth == 4
    assert asked == [0, 1, 2, 4]
    asked.clear()
    replayed(transcript(20), score, config, ahead=True)
    assert asked == [0, 1, 2, 4, 8, 12, 16, 20]


def test_depths_are_those_of_an_answer_that_passes() -> None:
    plan = GuardConfig(schedule=Every(10)).plan(max_new_tokens=23, prefill=5)
    assert check_depths(plan, transcript(23, 5)) == [0, 5, 6, 7, 9, 13, 15, 25, 28]


def test_an_end_of_turn_alone_is_checked_at_the_same_depth_and_counted_once() -> None:
    found = replayed(transcript(4, ends=True), {0: 0.2}, GuardConfig(schedule=Every(4), policy=Cusum(0.1, 9.0)))
    assert [check.depth for check in found.checks] == [0, 1, 2, 4, 4]
    assert found.checks[-1].statistic == pytest.approx(found.checks[-2].statistic)
    assert (found.generated, found.finish_reason) == (5, "stop")


def test_an_answer_without_a_token_is_checked_where_it_stands() -> None:
    found = replayed(transcript(0, 6), {0: 0.0, 6: 1.0}, GuardConfig())
    assert (found.finish_reason, found.verdict.depth, found.generated) == ("content_filter", 6, 0)
    assert replayed(transcript(0, 6), {0: 0.0}, GuardConfig()).finish_reason == "length"


def test_a_failed_check_halts_unless_it_may_not() -> None:
    failing = {0: 0.0, 4: RuntimeError("no"), 8: 0.0}
    closed = replayed(transcript(12), failing, GuardConfig(schedule=Every(4)))
    assert (closed.verdict.reason, closed.verdict.depth) == ("error", 4)
    opened = replayed(transcript(12), failing, GuardConfig(schedule=Every(4), on_error="open"))
    assert (opened.finish_reason, opened.verdict.errors) == ("length", 1)


def test_several_are_told_apart_and_keep_their_order() -> None:
    backend, detector = ScriptedBackend(["x"] * 99), ScriptedDetector(lambda row, depth: min(1.0, depth / 10))
    many = [Transcript(f"t{n}", transcript(1).prompt, tuple(b"a" * n)) for n in (30, 3, 12)]
    found = replay(Detecting("arm", backend, detector), many, GuardConfig(schedule=Every(5), policy=Threshold(1.0)))
    assert list(found) == ["t30", "t3", "t12"]
    assert list(halted(found)) == [True, False, True]
    assert [leaked(outcome) for outcome in found.values()] == [5, 3, 5]


class Inside:
    """Scores a depth by itself, inside a prefill as well."""

    name = "inside"
    reads_inside = True

    def __init__(self, bad: int) -> None:
        self.bad, self.asked = bad, [0]

    def scores(self, points: Sequence[Point]) -> list[Score | Exception]:
        self.asked += [point.depth for point in points]
        return [Score(float(point.depth == self.bad)) for point in points]

    def config(self, base: GuardConfig) -> GuardConfig:
        return base


def test_a_prefill_is_read_inside_by_those_who_can() -> None:
    base = GuardConfig(schedule=Every(5))
    found = replay(Inside(10), [transcript(8, 17)], base)["t"]
    assert (found.verdict.depth, found.generated) == (10, 0)
    assert [check.depth for check in found.checks] == [0, 1, 2, 4, 5, 10]
    last = replay(Inside(15), [transcript(8, 16)], base)["t"]
    assert (last.verdict.depth, last.generated) == (15, 0)
    at_end = replay(Inside(10), [transcript(8, 17)], GuardConfig(schedule=Every(5), prefill="end"))["t"]
    assert not at_end.verdict.halt and [check.depth for check in at_end.checks][:2] == [0, 17]


def test_a_point_is_the_conversation_up_to_its_depth() -> None:
    found = transcript(9, 4)
    point = Point(found, 6)
    assert point.prompt == Prompt((*found.start.ids, *b"ppppaa"), 6)
    assert (found.start.prefill, len(found.answer_ids)) == (0, 13)
