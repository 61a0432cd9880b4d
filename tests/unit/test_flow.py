"""The flow, with every reply given by hand: what it asks for, lets out and withholds."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anydepth.driver import settle
from anydepth.errors import CheckError, ConfigError
from anydepth.flow import (
    Calls,
    Check,
    Command,
    Decode,
    Finish,
    Halt,
    Outcome,
    Plan,
    Release,
    doubts_calls,
    guarded,
    step,
)
from anydepth.policy import Cusum, Ewma, KofN, Threshold
from anydepth.schedule import Adaptive, Every, Listed
from anydepth.types import Checked, CheckResult, Decoded, Score, Verdict, Window

settings.register_profile("no clock", deadline=None)  # a busy machine is no failure
settings.load_profile("no clock")

END = 99_999
FAILURES = (
    CheckError("NaN in the hidden state"),
    RuntimeError("out of memory"),
    *map(Score, (math.nan, math.inf, -math.inf, -0.01, 1.01)),
    Score("0.5"),  # pyright: ignore[reportArgumentType]
    Score(None),  # pyright: ignore[reportArgumentType]
    "harmless",
    None,
)
unit = st.floats(0, 1)
schedules = st.one_of(
    st.builds(Every, st.integers(1, 30), st.booleans()),
    st.builds(lambda a, b, c, d: Adaptive(a, a + b, c, d), st.integers(1, 8), st.integers(0, 30), unit, unit),
)
policies = st.one_of(
    st.builds(Threshold, unit),
    st.builds(lambda k, more, t: KofN(k, k + more, t), st.integers(1, 3), st.integers(0, 3), unit),
    st.builds(Ewma, st.floats(0.05, 1), unit),
    st.builds(Cusum, st.floats(0, 0.9), st.floats(0.05, 2)),
    st.builds(lambda alpha, t, w: Ewma(alpha, t, request=w), st.floats(0.05, 1), unit, st.floats(0.05, 1)),
)
scores = st.lists(unit, min_size=1, max_size=20)
replies = st.lists(unit | st.sampled_from(FAILURES), min_size=1, max_size=20)


@st.composite
def plans(draw: st.DrawFn, **fixed: Any) -> Plan:
    free = {
        "schedule": schedules,
        "policy": policies,
        "max_new_tokens": st.integers(1, 70),
        "prefill": st.integers(0, 40),
        "release": st.sampled_from(["hold", "eager", "monitor"]),
        "on_error": st.sampled_from(["closed", "open"]),
        "chunk": st.none() | st.integers(1, 6),
        "whole": st.just(False),
    }
    options: dict[str, Any] = {name: fixed.get(name, draw(values)) for name, values in free.items()}
    return Plan(**options)


@dataclass
class Engine:
    """Gives the tokens 0, 1, 2, … and notes where the answer stood at each command.

    `lost` is the number of the record that cannot be stored, and `calls` whether the answer has tool calls.
    """

    plan: Plan
    length: int
    end: str = "end token"
    portions: Sequence[int] = (1000,)
    score: Callable[[int], Any] = lambda depth: Score(0.0)
    lost: int | None = None
    calls: bool = False
    generated: int = 0
    ended: bool = False
    trace: list[tuple[Command, int]] = field(default_factory=list)
    outcome: Outcome = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        flow, portions, reply, records = guarded(self.plan), cycle(self.portions), None, 0
        while not isinstance(command := step(flow, reply), Outcome):
            self.trace.append((command, self.generated))
            reply = None
            if isinstance(command, Decode):
                reply = self._decode(min(command.n, next(portions)))
            elif isinstance(command, Check):
                reply = self.score(command.depth)
            elif isinstance(command, Calls):
                reply = self.calls
            elif isinstance(command, Release | Finish):
                reply = OSError("the disk is full") if records == self.lost else None
                records += 1
        self.outcome = command

    def _decode(self, n: int) -> Decoded:
        assert not self.ended, "a token was asked for after the end of the answer"
        fresh = list(range(self.generated, min(self.generated + n, self.length)))
        self.generated += len(fresh)
        last = self.generated == self.length
        if last and self.end == "late":  # the finish comes by itself, after the last token
            self.ended = not fresh
            return Decoded(tuple(fresh), "stop" if not fresh else None)
        self.ended = last
        if last and self.end == "end token":
            return Decoded((*fresh[:-1], END), "stop", 1)
        return Decoded(tuple(fresh), ("length" if self.end == "context full" else "stop") if last else None)

    @property
    def tokens(self) -> tuple[int, ...]:
        """What was generated."""
        ended = self.generated == self.length and self.end == "end token"
        return (*range(self.generated - 1), END) if ended else tuple(range(self.generated))

    @property
    def depth(self) -> int:
        return self.plan.prefill + self.generated - (END in self.tokens)

    @property
    def released(self) -> tuple[int, ...]:
        return tuple(t for command, _ in self.trace if isinstance(command, Release) for t in command.token_ids)

    @property
    def halts(self) -> list[Halt]:
        return [command for command, _ in self.trace if isinstance(command, Halt)]

    @property
    def checks(self) -> list[CheckResult]:
        return [command.check for command, _ in self.trace if isinstance(command, Checked)]


@st.composite
def engines(draw: st.DrawFn, replies: st.SearchStrategy[list[Any]] = replies, **fixed: Any) -> Engine:
    plan, values = draw(plans(**fixed)), draw(replies)
    kinds = ["end token", "stop string", "context full", "late"]
    portions = draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
    return Engine(plan, draw(st.integers(1, 80)), draw(st.sampled_from(kinds)), portions, by_depth(values))


def by_depth(values: Sequence[Any]) -> Callable[[int], Any]:
    return lambda depth: Score(v) if isinstance(v := values[depth % len(values)], float) else v


def coverage(engine: Engine) -> Iterator[tuple[Command, int, int]]:
    """Each command with the generated tokens so far and how many of them the last check covers."""
    covered = 0
    for command, generated in engine.trace:
        if isinstance(command, Check) and generated:
            behind = int(generated == engine.length and engine.end == "end token")
            assert command.depth == engine.plan.prefill + generated - behind, "a check is made where the answer stands"
            covered = generated
        yield command, generated, covered


@given(engines(release="hold"))
def test_hold_releases_nothing_before_a_check_that_covers_it(engine: Engine) -> None:
    left = 0
    for command, _, covered in coverage(engine):
        if isinstance(command, Release):
            left += len(command.token_ids)
            assert left <= covered


@given(engines())
def test_depth_zero_and_the_end_of_the_prefill_are_checked_before_the_first_token(engine: Engine) -> None:
    before = []
    for command, _ in engine.trace:
        if isinstance(command, Decode):
            break
        before += [command.depth] if isinstance(command, Check) else []
    wanted = list(dict.fromkeys([0, engine.plan.prefill]))
    assert before == wanted or (engine.outcome.finish_reason == "content_filter" and before == wanted[: len(before)])


@given(engines())
def test_released_and_withheld_are_what_was_generated_in_order(engine: Engine) -> None:
    withheld = engine.halts[0].withheld if engine.halts else 0
    assert engine.released == engine.tokens[: len(engine.released)]
    assert len(engine.released) + withheld == len(engine.tokens) == engine.outcome.generated
    if not engine.halts:
        assert withheld == 0
        assert engine.generated == min(engine.length, engine.plan.max_new_tokens)


@given(engines())
def test_windows_tile_the_generated_tokens(engine: Engine) -> None:
    position = engine.plan.prefill
    for window in engine.outcome.windows:
        assert window.start == position < window.stop
        position = window.stop
        behind = int(window.stop == engine.plan.prefill + engine.length and engine.end == "end token")
        assert window.checked_at == window.stop - behind
    assert position == engine.plan.prefill + engine.generated
    states = [w.state for w in engine.outcome.windows for _ in range(w.start, w.stop)]
    assert states.count("released") == len(engine.released)
    assert states == sorted(states), "nothing is released behind what is withheld"


@given(engines())
def test_the_last_token_is_covered_by_a_check(engine: Engine) -> None:
    *_, (_, generated, covered) = coverage(engine)
    assert covered == generated == engine.generated
    if engine.generated:
        assert engine.checks[-1].depth == engine.depth


@pytest.mark.parametrize("release", ["hold", "eager", "monitor"])
@pytest.mark.parametrize(
    ("length", "end", "most", "depths", "finish"),
    [
        (1, "end token", 50, [0, 7, 7], "stop"),  # an empty answer: its only token ends the turn
        (1, "stop string", 50, [0, 7, 8], "stop"),
        (1, "late", 50, [0, 7, 8, 8], "stop"),
        (50, "end token", 1, [0, 7, 8], "length"),
        (3, "end token", 50, [0, 7, 8, 9, 9], "stop"),
        (13, "context full", 50, [0, 7, 8, 9, 11, 15, 17, 20], "length"),
        (13, "end token", 50, [0, 7, 8, 9, 11, 15, 17, 19], "stop"),
        (13, "end token", 13, [0, 7, 8, 9, 11, 15, 17, 19], "stop"),  # it ends where it would have been cut
        (40, "stop string", 13, [0, 7, 8, 9, 11, 15, 17, 20], "length"),
        (40, "stop string", 20, [0, 7, 8, 9, 11, 15, 17, 27], "length"),  # ends at a scheduled check: no second one
    ],
)
def test_the_walk_of_an_answer(length: int, end: str, most: int, depths: list[int], finish: str, release: Any) -> None:
    engine = Engine(Plan(Every(10), Threshold(), most, prefill=7, release=release, chunk=3), length, end)
    assert [check.depth for check in engine.checks] == depths
    assert engine.outcome.finish_reason == finish
    assert engine.released == engine.tokens


@given(engines(release="monitor"), st.data())
def test_monitor_releases_everything_and_decides_what_hold_would_have(engine: Engine, data: st.DataObject) -> None:
    assert not engine.halts
    assert engine.released == engine.tokens
    assert engine.outcome.finish_reason != "content_filter"
    plan = dataclasses.replace(engine.plan, release="hold")
    held = Engine(plan, engine.length, engine.end, data.draw(st.just([1]) | st.just([9, 2])), engine.score)
    watched, decided = engine.outcome.verdict, held.outcome.verdict
    assert repr(held.checks) == repr(engine.checks[: len(held.checks)])  # as text: NaN is not NaN
    assert repr(dataclasses.replace(watched, errors=0)) == repr(dataclasses.replace(decided, errors=0))
    assert watched.halt == bool(held.halts)


@given(engines(release="eager"))
def test_eager_releases_before_the_check_and_leaks_what_it_has_released(engine: Engine) -> None:
    left = 0
    for command, generated in engine.trace:
        if isinstance(command, Release):
            left += len(command.token_ids)
        elif isinstance(command, Check | Halt):
            assert left == generated, "all that was generated has left when it is checked"
    assert [halt.withheld for halt in engine.halts] in ([], [0])
    assert {window.state for window in engine.outcome.windows} <= {"released"}


@given(engines(whole=True))
def test_a_whole_answer_leaves_at_its_end_or_not_at_all(engine: Engine) -> None:
    left = [(command.token_ids, generated) for command, generated in engine.trace if isinstance(command, Release)]
    if engine.halts:
        assert left == [] and {window.state for window in engine.outcome.windows} <= {"withheld"}
        assert [halt.withheld for halt in engine.halts] == [engine.outcome.generated]
    else:
        assert left == [(engine.tokens, engine.generated)]
        assert engine.outcome.windows == (
            Window(engine.plan.prefill, engine.plan.prefill + engine.generated, engine.depth, "released"),
        )
    plan = dataclasses.replace(engine.plan, whole=False)
    free = Engine(plan, engine.length, engine.end, engine.portions, engine.score)
    assert repr(engine.checks) == repr(free.checks)  # as text: NaN is not NaN


def test_a_whole_answer_whose_record_cannot_be_stored_is_withheld() -> None:
    engine = Engine(Plan(Every(4), Threshold(), 9, release="eager", whole=True), 9, lost=0)
    (halt,) = engine.halts
    assert (halt.withheld, halt.verdict.reason, halt.verdict.depth, engine.released) == (9, "error", 0, engine.tokens)
    assert engine.outcome.windows == (Window(0, 9, 8, "withheld"),)


@given(engines())
def test_no_decode_is_longer_than_its_chunk_or_passes_the_end(engine: Engine) -> None:
    for command, generated in engine.trace:
        if isinstance(command, Decode):
            assert 1 <= command.n <= (engine.plan.chunk or command.n)
            assert generated + command.n <= engine.plan.max_new_tokens


@given(engines(release="hold"), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_how_tokens_are_portioned_changes_nothing(engine: Engine, portions: list[int]) -> None:
    other = Engine(engine.plan, engine.length, engine.end, portions, engine.score)
    assert repr(other.outcome) == repr(engine.outcome)
    assert other.released == engine.released


@given(engines(replies=scores, release="hold"))
def test_a_halt_is_the_policys_and_at_the_first_check_that_trips(engine: Engine) -> None:
    policy, checks = engine.plan.policy, engine.checks
    values: list[float] = []
    statistics: list[float] = []
    for before, check in zip([None, *checks], checks, strict=False):
        if before is not None and before.depth == check.depth:
            values.pop()  # an end-of-turn token alone: the same reading again, which counts once
        values.append(check.score)
        statistics.append(policy.statistic(values)[-1])
    assert [check.statistic for check in checks] == statistics
    tripped = [index for index, value in enumerate(statistics) if value >= policy.threshold]
    assert tripped == ([len(checks) - 1] if engine.halts else [])
    verdict = engine.outcome.verdict
    if engine.halts:
        assert verdict == Verdict(True, checks[-1].score, checks[-1].depth, "policy")
        assert engine.halts[0].verdict == verdict
    else:
        highest = max(checks, key=lambda check: check.score)
        assert verdict == Verdict(False, highest.score, highest.depth, "clear")


def test_an_end_of_turn_right_after_a_check_is_one_reading_for_the_policy() -> None:
    plan = Plan(Every(4, doubling=False), KofN(2, 2, 0.5), max_new_tokens=20)
    flow = guarded(plan)
    assert next(flow) == Check(0)
    replies: list[Any] = [Score(0.1), None, Decoded((7,) * 4), Score(0.6), None, None, Decoded((2,), "stop", 1)]
    commands = [flow.send(reply) for reply in replies]
    assert commands[-1] == Check(4), "the end of turn is checked, at the depth of the text before it"
    flow.send(Score(0.6))
    assert flow.send(None) == Release((2,))
    last = step(flow)
    assert isinstance(last, Finish)
    assert step(flow) == last.outcome and not last.outcome.verdict.halt


@given(engines())
def test_a_failed_check_halts_if_closed_and_is_told_if_open(engine: Engine) -> None:
    failed = [check for check in engine.checks if check.error]
    assert engine.outcome.verdict.errors == len(failed)
    for check in failed:
        assert math.isnan(check.score)
        assert math.isnan(check.statistic)
    if engine.plan.on_error == "open":
        assert engine.outcome.verdict.reason != "error"
    elif engine.plan.release != "monitor":
        assert all(check is engine.checks[-1] for check in failed)
        assert bool(failed) == (engine.outcome.verdict.reason == "error")
        assert engine.halts or not failed


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
@pytest.mark.parametrize("at", [0, 3, 4, 5])
def test_each_failure_at_each_place(failure: Any, at: int) -> None:
    def score(depth: int) -> Any:
        return failure if depth == at else Score(0.25)

    plan = Plan(Every(1), Threshold(), 20, prefill=3)
    closed = Engine(plan, 2, "stop string", score=score)
    assert closed.outcome.finish_reason == "content_filter"
    assert (closed.outcome.verdict.reason, closed.outcome.verdict.depth, closed.outcome.verdict.errors) == (
        "error",
        at,
        1,
    )
    assert closed.released == tuple(range(max(at - 4, 0)))
    opened = Engine(dataclasses.replace(plan, on_error="open"), 2, "stop string", score=score)
    assert opened.outcome.finish_reason == "stop"
    assert opened.released == (0, 1)
    assert opened.outcome.verdict == Verdict(False, 0.25, 3 if at == 0 else 0, "clear", 1)
    [error] = [check.error for check in opened.checks if check.error]
    assert str(failure) in error or repr(getattr(failure, "value", failure)) in error


def test_failing_open_with_no_good_check_says_how_many_failed() -> None:
    plan = Plan(Every(), Threshold(0.0), 3, on_error="open")
    verdict = Engine(plan, 9, score=lambda depth: ValueError("broken")).outcome.verdict
    assert (verdict.halt, verdict.reason, verdict.errors) == (False, "clear", 4)
    assert math.isnan(verdict.score)


@pytest.mark.parametrize("release", ["hold", "eager"])
def test_a_halt_at_depth_zero_asks_for_no_token(release: Any) -> None:
    engine = Engine(Plan(Every(), Threshold(), 9, prefill=5, release=release), 9, score=lambda depth: Score(1))
    assert [type(command) for command, _ in engine.trace] == [Check, Checked, Halt, Finish]
    assert engine.outcome.windows == ()
    assert engine.outcome.generated == 0


def test_a_halt_accounts_for_the_windows_before_it() -> None:
    engine = Engine(Plan(Every(4), Threshold(), 9, prefill=2), 9, score=lambda depth: Score(float(depth >= 6)))
    assert engine.outcome.windows == (
        Window(2, 3, 3, "released"),
        Window(3, 4, 4, "released"),
        Window(4, 6, 6, "withheld"),
    )
    assert engine.halts == [Halt(Verdict(True, 1.0, 6, "policy"), 2)]


def test_what_was_read_inside_a_prefill_is_judged_before_its_end() -> None:
    inside: dict[int, Any] = {25: Score(0.1), 50: Score(0.9)}
    plan = Plan(Listed(()), Threshold(0.5), 10, prefill=60, inside=inside)
    engine = Engine(plan, 3, score=lambda depth: Score(0.0))
    assert [check.depth for check in engine.checks] == [0, 25, 50]
    assert engine.outcome.finish_reason == "content_filter" and engine.outcome.generated == 0
    assert (engine.outcome.verdict.depth, engine.outcome.verdict.reason) == (50, "policy")
    inside[50] = RuntimeError("broken")
    assert Engine(plan, 3, score=lambda depth: Score(0.0)).outcome.verdict.reason == "error"
    inside[50] = Score(0.2)
    calm = Engine(plan, 3, score=lambda depth: Score(0.0))
    assert [check.depth for check in calm.checks] == [0, 25, 50, 60, 62]
    assert not calm.outcome.verdict.halt


@pytest.mark.parametrize("depth", [0, 60, 61, -1])
def test_what_is_inside_a_prefill_is_inside(depth: int) -> None:
    with pytest.raises(ConfigError, match=rf"inside a prefill of 60 tokens are at \[{depth}\]"):
        Plan(Listed(()), Threshold(), 10, prefill=60, inside={depth: Score(0.0)})


def test_a_backend_that_gives_nothing_is_an_error_and_not_an_endless_loop() -> None:
    flow = guarded(Plan(Every(), Threshold(), 9))
    next(flow)
    flow.send(Score(0))
    assert flow.send(None) == Decode(1)
    with pytest.raises(RuntimeError, match="decoded nothing at depth 0"):
        flow.send(Decoded(()))


def test_a_statistic_that_is_nan_halts() -> None:
    class Broken:
        threshold = 0.5

        def statistic(self, scores: Sequence[float]) -> list[float]:
            return [math.nan for _ in scores]

    flow = guarded(Plan(Every(4), Broken(), max_new_tokens=20))
    assert next(flow) == Check(0)
    flow.send(Score(0.1))
    halt = flow.send(None)
    assert isinstance(halt, Halt)
    assert halt.verdict.halt


# -- records that cannot be stored, and calls that are kept until the end ----------------------------------------------


@given(engines(replies=st.just([0.0]), policy=Threshold(1.0)), st.integers(0, 12))
def test_a_record_that_cannot_be_stored_halts_whatever_the_options_are(whole: Engine, lost: int) -> None:
    """Also under `monitor`, and where failed checks are let go on."""
    engine = Engine(whole.plan, whole.length, whole.end, whole.portions, lost=lost)
    records = [command for command, _ in engine.trace if isinstance(command, Release | Finish)]
    if len(records) <= lost:
        assert engine.outcome == whole.outcome and engine.halts == []
        return
    failed, outcome = records[lost], engine.outcome
    left = tuple(t for each in records[:lost] if isinstance(each, Release) for t in each.token_ids)
    withheld = failed.token_ids if isinstance(failed, Release) else ()
    assert engine.halts == [Halt(outcome.verdict, len(withheld))]
    assert outcome.finish_reason == "content_filter" and outcome.verdict.reason == "error" and outcome.verdict.halt
    assert outcome.verdict.errors == 1 and outcome.verdict.depth == engine.plan.prefill + len(left)
    assert left + withheld == engine.tokens and outcome.generated == len(engine.tokens)
    states = [state for window in outcome.windows for state in [window.state] * (window.stop - window.start)]
    assert states == ["released"] * len(left) + ["withheld"] * len(withheld)
    assert not any(
        isinstance(command, Decode) for command, _ in engine.trace[engine.trace.index((failed, engine.generated)) :]
    )


@pytest.mark.parametrize("release", ["hold", "eager"])
def test_a_halted_answer_whose_last_record_is_lost_is_refused_once(release: Any) -> None:
    plan = Plan(Every(4), Threshold(), 9, release=release)
    halted = Engine(plan, 9, score=lambda depth: Score(float(depth >= 2)))
    records = sum(isinstance(command, Release) for command, _ in halted.trace)
    engine = Engine(plan, 9, score=lambda depth: Score(float(depth >= 2)), lost=records)
    assert len(engine.halts) == 1 and engine.outcome.windows == halted.outcome.windows
    assert (halted.outcome.verdict.reason, engine.outcome.verdict.reason) == ("policy", "error")


@pytest.mark.parametrize("release", ["hold", "eager", "monitor"])
@pytest.mark.parametrize("calls", [False, True])
def test_calls_do_not_leave_after_a_failed_check_that_the_guard_let_go_on(release: Any, calls: bool) -> None:
    plan = Plan(Every(4), Threshold(), 9, release=release, on_error="open")
    engine = Engine(plan, 9, score=lambda depth: RuntimeError("broken") if depth == 4 else Score(0.1), calls=calls)
    asked = [command for command, _ in engine.trace if isinstance(command, Calls)]
    assert bool(asked) is (release != "monitor") is doubts_calls(1, release)
    assert len(engine.released) == 9, "what was not kept until the end has left"
    if calls and asked:
        assert engine.outcome.finish_reason == "content_filter" and engine.outcome.verdict.reason == "error"
        assert engine.halts == [Halt(engine.outcome.verdict, 0)] and engine.outcome.verdict.errors == 1
    else:
        assert engine.outcome.finish_reason == "stop" and not engine.halts


def test_calls_of_an_answer_without_a_failed_check_are_not_asked_for() -> None:
    engine = Engine(Plan(Every(4), Threshold(), 9, on_error="open"), 9, calls=True)
    assert not any(isinstance(command, Calls) for command, _ in engine.trace)


def test_a_written_answer_is_settled_up_to_the_first_unknown_score() -> None:
    flow, known = guarded(Plan(Every(4, doubling=False), Threshold(), 9)), {0: Score(0.1), 4: Score(0.2)}
    waits = settle(flow, step(flow), lambda count: Decoded((0,) * count), known)
    assert waits == Check(8)
    known |= {8: Score(0.3), 9: Score(0.9)}
    outcome = settle(flow, waits, lambda count: Decoded((0,) * count), known)
    assert isinstance(outcome, Outcome) and [check.score for check in outcome.checks] == [0.1, 0.2, 0.3, 0.9]
    assert outcome.finish_reason == "content_filter"
