"""Scanning a finished answer: packed and fork by fork, and what the guard would have done."""

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anydepth import Guard
from anydepth.backends.protocol import Capability, Read, Site
from anydepth.detectors import LinearProbe, ProbeCard, Rethink
from anydepth.errors import CheckError, PromptError
from anydepth.policy import Threshold
from anydepth.scan import AT_ONCE, inside_prefill, scores_at
from anydepth.schedule import Adaptive, Every, Schedule
from anydepth.testing import ScriptedBackend, ScriptedDetector
from anydepth.types import Score
from tests.unit.test_flow import policies, schedules

WIDTH = 4


def logit(score: float) -> float:
    return math.log(score / (1 - score))


def states(scores: Sequence[float]) -> Callable[[int, int], list[float]]:
    """Hidden states that the probe gives these scores, by depth and over again."""
    return lambda row, depth: [logit(s) if 0 < (s := scores[depth % len(scores)]) < 1 else s] + [1.0] * (WIDTH - 1)


def guard_of(scores: Sequence[float], answer: str = "abc", *, packed: bool = True, **options: Any) -> Guard:
    backend = ScriptedBackend([answer], states=states(scores), packed=packed, width=WIDTH)
    card = ProbeCard(backend.identity, backend.header.ids, (Read(Site(2), backend.header.read_index),))
    return Guard.from_backend(backend, LinearProbe(np.eye(WIDTH)[0], 0.0, card), **options)


def figures(result: Any) -> list[tuple[int, float | None, float | None]]:
    """Depth, score and statistic of each check; None where it failed."""
    return [
        (check.depth, None, None) if check.error else (check.depth, round(check.score, 6), round(check.statistic, 6))
        for check in result.checks
    ]


def test_a_scan_checks_every_scheduled_depth_and_the_end() -> None:
    result = guard_of([0.25], packed=True).scan("hi", "x" * 40)
    assert [check.depth for check in result.checks] == [0, 1, 2, 4, 8, 16, 25, 40]
    assert (result.method, result.notes) == ("packed", ())
    assert result.verdict.halt is False
    assert result.verdict.score == pytest.approx(0.25)


def test_a_scan_goes_on_behind_the_depth_that_would_have_halted() -> None:
    result = guard_of([0.25] * 4 + [0.75] * 40).scan("hi", "x" * 30)
    assert [check.depth for check in result.checks] == [0, 1, 2, 4, 8, 16, 25, 30]
    assert (result.verdict.halt, result.verdict.depth, result.verdict.reason) == (True, 4, "policy")


fixed = st.builds(Every, st.integers(1, 30), st.booleans())
answer_scores = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=30)


@given(answer_scores, st.integers(1, 80), fixed, policies)
def test_packed_and_forks_agree(scores: list[float], length: int, schedule: Schedule, policy: Any) -> None:
    options = {"schedule": schedule, "policy": policy}
    packed = guard_of(scores, **options).scan("hi", "x" * length)
    forks = guard_of(scores, packed=False, **options).scan("hi", "x" * length)
    assert (packed.method, forks.method) == ("packed", "forks")
    assert figures(packed) == figures(forks)
    assert packed.verdict == forks.verdict


@given(answer_scores, st.integers(1, 60), schedules, policies, st.booleans())
def test_a_scan_decides_what_the_guard_decided_live(
    scores: list[float], length: int, schedule: Schedule, policy: Any, packed: bool
) -> None:
    guard = guard_of(scores, "x" * 100, packed=packed, schedule=schedule, policy=policy, release="monitor")
    live = guard.generate("hi", max_new_tokens=length)  # cut, so that no end of turn is checked
    scanned = guard.scan("hi", live.text)
    assert figures(scanned) == figures(live)
    assert scanned.verdict == live.verdict


@pytest.mark.parametrize("packed", [True, False])
def test_a_schedule_that_looks_at_the_scores_is_followed_on_forks(packed: bool) -> None:
    scores = [0.1] * 11 + [0.45] * 40
    result = guard_of(scores, packed=packed, schedule=Adaptive(5, 50)).scan("hi", "x" * 30)
    assert [check.depth for check in result.checks] == [0, 1, 11, 16, 21, 26, 30]
    assert result.method == "forks"
    assert result.notes == ("the schedule looks at the scores",)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_state_that_is_not_finite_halts_if_closed_and_is_told_if_open(packed: bool, bad: float) -> None:
    scores = [0.25] * 8 + [bad] + [0.25] * 40
    closed = guard_of(scores, packed=packed).scan("hi", "x" * 30)
    assert (closed.verdict.halt, closed.verdict.reason, closed.verdict.depth) == (True, "error", 8)
    opened = guard_of(scores, packed=packed, on_error="open").scan("hi", "x" * 30)
    assert (opened.verdict.halt, opened.verdict.reason, opened.verdict.errors) == (False, "clear", 1)
    for result in (closed, opened):
        assert [check.depth for check in result.checks] == [0, 1, 2, 4, 8, 16, 25, 30]
        [failed] = [check for check in result.checks if check.error]
        assert failed.depth == 8
        assert "not finite" in (failed.error or "")


def test_forks_say_why() -> None:
    refused = guard_of([0.25], packed=False)
    assert refused.scan("hi", "abc").notes == ("the script does not take the packed mask",)
    backend = ScriptedBackend(["abc"], look_aheads={0: "Sure", 2: "I'm sorry, but I can't help with that."})
    result = Guard.from_backend(backend, Rethink()).scan("hi", "abcdef")
    assert result.method == "forks"
    assert "rethink" in result.notes[0]
    assert [check.score for check in result.checks] == [0, 0, 1, 1, 1]
    assert result.checks[2].detail == "I'm sorry, but I can't help with that."
    assert result.verdict.depth == 2


def test_the_replayed_session_is_closed_also_when_it_fails() -> None:
    backend = ScriptedBackend(["abc"])
    guard = Guard.from_backend(backend, ScriptedDetector({0: KeyboardInterrupt()}))
    with pytest.raises(KeyboardInterrupt):
        guard.scan("hi", "abc")
    Guard.from_backend(backend, ScriptedDetector({})).scan("hi", "abc")
    assert [session.closed for session in backend.sessions] == [True, True]


@pytest.mark.parametrize("answer", [""])
@pytest.mark.parametrize("packed", [True, False])
def test_an_empty_answer_is_refused(answer: str, packed: bool) -> None:
    with pytest.raises(PromptError, match="answer to scan is empty"):
        guard_of([0.25], packed=packed).scan("hi", answer)


@pytest.mark.parametrize("release", ["hold", "eager", "monitor"])
def test_the_release_mode_changes_no_scan(release: Any) -> None:
    scores = [0.25] * 4 + [0.75] * 40
    wanted = guard_of(scores).scan("hi", "x" * 30)
    assert guard_of(scores, release=release).scan("hi", "x" * 30) == wanted


def test_a_scan_of_one_token() -> None:
    result = guard_of([0.25, 0.75], schedule=Every(25), policy=Threshold(0.5)).scan("hi", "x")
    assert [check.depth for check in result.checks] == [0, 1]
    assert result.verdict.depth == 1


def test_a_state_of_the_wrong_width_is_an_error_of_the_backend() -> None:
    backend = ScriptedBackend(["abc"], states={0: [0.0] * 3}, width=WIDTH)
    card = ProbeCard(backend.identity, backend.header.ids, (Read(Site(2), backend.header.read_index),))
    guard = Guard.from_backend(backend, LinearProbe(np.zeros(WIDTH), 0.0, card))
    with pytest.raises(CheckError, match="shape"):
        guard.scan("hi", "abc")


def test_a_detector_is_run_at_the_named_depths_and_at_no_other() -> None:
    backend = ScriptedBackend(["x"], look_aheads={0: "Sure", 5: "I cannot help with that."}, at_most=(2,))
    prompt = backend.template.prompt("hi", prefill="abcdefgh")
    found = scores_at(backend, Rethink(), prompt, [0, 3, 5])
    assert [score.value for score in found if isinstance(score, Score)] == [0.0, 0.0, 1.0]
    (session,) = backend.sessions
    assert [point.depth for point in session.checked] == [0, 3, 5]
    assert session.closed


def test_a_check_that_fails_is_its_own() -> None:
    backend = ScriptedBackend(["x"])
    prompt = backend.template.prompt("hi", prefill="abcdefgh")
    found = scores_at(backend, ScriptedDetector({1: CheckError("no"), 2: 0.5}), prompt, [1, 2])
    assert isinstance(found[0], CheckError) and isinstance(found[1], Score)


class Held:
    """A detector whose scores come from outside: once `most` are awaited, and at depth `last`."""

    name, needs = "held", frozenset({Capability.HIDDEN_STATES})

    def __init__(self, most: int, last: int) -> None:
        self.most, self.last, self.seen = most, last, 0
        self.held: list[Future[Score]] = []

    def bind(self, backend: Any) -> None:
        """It needs nothing."""

    def check(self, session: Any, points: Any) -> list[Score]:
        raise AssertionError("it is begun, not made")

    def begin(self, session: Any, points: Sequence[Any]) -> list[Future[Score]]:
        assert len(self.held) < self.most, "more are under way than may be"
        found = [Future[Score]() for _ in points]
        self.held += found
        self.seen = max(self.seen, len(self.held))
        if points[-1].depth == self.last:
            self.reply()
        elif len(self.held) == self.most:
            threading.Timer(0.01, self.reply).start()
        return found

    def reply(self) -> None:
        while self.held:
            self.held.pop(0).set_result(Score(0.5))


@pytest.mark.parametrize("way", ["scan", "inside", "scores"])
def test_no_more_than_some_checks_of_an_answer_are_under_way_outside(way: str) -> None:
    detector, backend = Held(AT_ONCE, 30), ScriptedBackend(["x"])
    guard = Guard.from_backend(backend, detector, schedule=Every(1, doubling=False))
    prompt = backend.template.prompt("hi", prefill="y" * (31 if way == "inside" else 30))
    found: list[Any] = []
    if way == "scan":
        found += [check.score for check in guard.scan("hi", "y" * 30).checks]
    elif way == "inside":
        found += [0.5, *(getattr(each, "value", each) for each in inside_prefill(*reading(guard), prompt).values())]
    else:
        found += [getattr(each, "value", each) for each in scores_at(backend, detector, prompt, range(31))]
    assert found == [0.5] * 31 and detector.seen == AT_ONCE


def reading(guard: Guard) -> tuple[Any, Any, Any]:
    return guard.backend, guard.detector, guard.config
