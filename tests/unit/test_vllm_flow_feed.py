"""The feed brings tokens and scores to the flow as an engine has them; the audit verifies what came of it."""

import json
from math import nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anydepth import Every, Threshold
from anydepth.audit.answer import Account
from anydepth.audit.file import JsonlFile
from anydepth.audit.trail import Audit
from anydepth.audit.verify import verify_audit
from anydepth.config import GuardConfig
from anydepth.errors import BadRequest, CheckError
from anydepth.guard_report import GuardReport
from anydepth.templates.template import Prompt
from anydepth.types import Score
from anydepth.vllm.engine.answer_report import answer_report
from anydepth.vllm.engine.flow_feed import FlowFeed
from anydepth.vllm.front.replies import RequestedReply, end_of
from anydepth.vllm.report_field import parse_stop_reason, refusal_report, stop_reason

END = 2


def make(tmp_path, *, prefill=0, most=40, broken=False, **options):
    guard = GuardConfig(**{"policy": Threshold(0.5), "schedule": Every(4, doubling=False), **options})
    prompt = Prompt(tuple(range(10 + prefill)), prefill)
    sink = JsonlFile(tmp_path / "audit.jsonl", 10**9, 3)
    audit = Audit(sink)
    if broken:
        sink.write = sink.probe = _full
    account = Account(audit, "a", 0, "vllm", "m", prompt, guard, frozenset({END}))
    return FlowFeed(guard.plan(max_new_tokens=most, prefill=prefill), account, frozenset({END}))


def _full(*args):
    raise OSError(28, "full")


def low(watch):
    """Answer whatever is due with a low score."""
    while watch.due is not None:
        watch.answer(watch.due, Score(0.1))


def test_tokens_leave_after_the_check_that_covers_them(tmp_path):
    watch = make(tmp_path)
    watch.begin({})
    assert watch.due == 0
    watch.push([20])
    assert watch.released == []
    watch.answer(0, Score(0.1))
    watch.push([21, 22, 23])
    assert watch.due == 4 and watch.released == []
    watch.push([24])  # sampled in the pass that makes the check
    watch.answer(4, Score(0.2))
    assert watch.released == [20, 21, 22, 23] and watch.due is None
    watch.push([END], "stop")
    assert watch.due == 5 and not watch.over
    watch.answer(5, Score(0.3))
    assert watch.released == [20, 21, 22, 23, 24, END] and watch.over and not watch.halted
    assert verify_audit(tmp_path / "audit.jsonl").ok


def test_a_halt_withholds_the_window_and_what_was_sampled_meanwhile(tmp_path):
    watch = make(tmp_path)
    watch.begin({})
    low(watch)
    watch.push([20, 21, 22, 23])
    watch.push([24])
    watch.answer(4, Score(0.9))
    assert watch.halted and watch.released == [] and watch.withheld == 5 and watch.outcome.generated == 4
    report = answer_report(watch, detector="probe", checks=True)
    assert parse_stop_reason(stop_reason(report)) == report
    assert report["depth"] == 4 and report["timeline"][-1]["score"] == 0.9 and report["leak_tokens"] == 0
    assert (report["released_tokens"], report["withheld_tokens"], report["generated"]) == (0, 5, 4)
    assert GuardReport.read(report).record() == {
        key: value for key, value in report.items() if key not in ("detector", "prefill", "generated")
    }
    assert verify_audit(tmp_path / "audit.jsonl").blocked == 1


def test_an_end_of_turn_after_a_check_needs_no_new_reading(tmp_path):
    watch = make(tmp_path)
    watch.begin({})
    low(watch)
    watch.push([20, 21, 22, 23])
    watch.answer(4, Score(0.2))
    watch.push([END], "stop")
    assert watch.over and watch.released == [20, 21, 22, 23, END]
    assert [check.depth for check in watch.outcome.checks] == [0, 4, 4]
    assert verify_audit(tmp_path / "audit.jsonl").ok


@pytest.mark.parametrize("reply", [CheckError("no"), Score(nan), "nonsense"])
def test_a_check_that_fails_halts(tmp_path, reply):
    watch = make(tmp_path)
    watch.begin({})
    watch.answer(0, reply)
    assert watch.halted and watch.outcome.verdict.reason == "error"
    assert answer_report(watch, detector="probe", checks=False)["error"]


def test_a_check_at_another_depth_halts(tmp_path):
    watch = make(tmp_path)
    watch.begin({})
    low(watch)
    watch.push([20, 21, 22, 23])
    watch.answer(3, Score(0.1))
    assert watch.halted and watch.released == []


def test_a_prefill_is_judged_inside_before_the_flow_goes_on(tmp_path):
    watch = make(tmp_path, prefill=9)
    assert not watch.begun and watch.due is None
    watch.push([20])
    watch.begin({4: Score(0.1), 8: Score(0.7)})
    watch.answer(0, Score(0.1))
    assert watch.halted and watch.outcome.verdict.depth == 8 and watch.withheld == 1


def test_an_audit_that_cannot_be_written_halts_and_keeps_the_tokens(tmp_path):
    watch = make(tmp_path, broken=True)
    watch.begin({})
    low(watch)
    watch.push([20, 21, 22, 23])
    watch.answer(4, Score(0.1))
    assert watch.halted and watch.released == [] and watch.error == "AuditError"
    assert watch.withheld == watch.outcome.generated == 4 and watch.outcome.verdict.errors == 1
    assert [window.state for window in watch.outcome.windows] == ["withheld"]


def test_a_last_record_that_fails_once_is_written_as_what_it_came_to(tmp_path):
    watch = make(tmp_path)
    watch.begin({})
    low(watch)
    watch.push([20, 21, 22, 23])
    low(watch)
    sink = watch.account.audit._sink
    whole = sink.write

    def once(record):
        sink.write = whole
        _full()

    sink.write = lambda record: once(record) if record["kind"] == "answer" else whole(record)
    watch.push([END], "stop")
    low(watch)
    assert watch.halted and watch.error == "AuditError"
    watch.account.audit.close()
    report = verify_audit(tmp_path / "audit.jsonl")
    assert report.ok and report.answers == {"audit": 1} and not report.unfinished


def test_eager_sends_at_once_and_monitor_never_halts(tmp_path):
    eager = make(tmp_path, release="eager")
    eager.begin({})
    low(eager)
    eager.push([20])
    assert eager.released == [20]
    eager.push([21, 22, 23])
    eager.answer(4, Score(0.9))
    assert eager.halted and eager.released == [20, 21, 22, 23]
    monitor = make(tmp_path / "monitor", release="monitor")
    monitor.begin({})
    monitor.answer(0, Score(0.9))
    monitor.push([20, END], "stop")
    monitor.answer(1, Score(0.9))
    assert monitor.over and not monitor.halted and monitor.released == [20, END]


def test_an_aborted_answer_is_accounted_for(tmp_path):
    watch = make(tmp_path)
    watch.begin({})
    low(watch)
    watch.push([20, 21, 22, 23])
    low(watch)
    watch.push([24])
    watch.broken("cancelled")
    watch.account.audit.close()
    report = verify_audit(tmp_path / "audit.jsonl")
    assert report.ok and report.answers["cancelled"] == 1 and report.released == 4


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 5), min_size=1, max_size=8),  # at most max_new_tokens, as an engine gives
    interval=st.integers(1, 9),
    scores=st.lists(st.floats(0, 1), min_size=60, max_size=60),
    ends=st.booleans(),
)
def test_nothing_unchecked_leaves_however_tokens_and_scores_interleave(
    tmp_path_factory, pieces, interval, scores, ends
):
    folder = tmp_path_factory.mktemp("audit")
    watch = make(folder, schedule=Every(interval), policy=Threshold(0.95))
    watch.begin({})
    draw = iter(scores)
    given_tokens, deepest = 0, -1
    for number, size in enumerate(pieces):
        if watch.over:
            break
        if watch.due is not None:
            deepest = watch.due
            watch.answer(watch.due, Score(next(draw)))
        last = number == len(pieces) - 1
        tokens = [20] * size
        if last and ends:
            tokens[-1] = END
        given_tokens += size
        watch.push(tokens, "stop" if last else None)
        assert len(watch.released) <= max(deepest, 0) + (1 if watch.over else 0)
    while watch.due is not None:
        deepest = watch.due
        watch.answer(watch.due, Score(next(draw)))
        assert len(watch.released) <= deepest + 1
    assert watch.over
    if not watch.halted:
        assert len(watch.released) == given_tokens
    report = verify_audit(folder / "audit.jsonl")
    assert report.ok and not report.unfinished and report.unchecked == 0


def test_a_stop_string_that_looks_like_a_report_is_none():
    report = stop_reason({"halted": False, "would_halt": False})
    asked = RequestedReply("1", chat=True, stops=(report, "anydepth:{}"), strict=False)
    for stop in asked.stops:
        choice = {"finish_reason": "stop", "stop_reason": stop}
        assert end_of(choice, None, asked, called=True)[0].halted, "calls of an answer without a report must not leave"
        assert not end_of(choice, None, asked, called=False)[0].halted


def test_a_refusal_names_the_option():
    report = refusal_report(BadRequest("not allowed", "anydepth.interval"))
    assert GuardReport.read(report).halted, "a refusal after the start of a stream is read like a report"
    text = stop_reason(report)
    assert text.startswith("anydepth:") and json.loads(text.removeprefix("anydepth:"))["param"] == "anydepth.interval"
    assert parse_stop_reason("stop") is None and parse_stop_reason(None) is None and parse_stop_reason(7) is None
