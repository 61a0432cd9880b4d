"""The writer of one answer: what is stored before tokens leave, and what is done if it cannot be."""

import math
from typing import Any

import pytest

from anydepth import Every, Guard
from anydepth.flow import Calls, Finish, Halt, Outcome, Release
from anydepth.guard_report import GuardReport
from anydepth.templates.template import Prompt
from anydepth.testing import END, ScriptedBackend, ScriptedDetector
from anydepth.types import Checked, CheckResult, Event, Finished, Halted, Released, Verdict
from anydepth.writer import AnswerWriter

HEAD = (257, 104, 256, 258)
CLEAR = Outcome("stop", Verdict(False, 0.1, 0), (), (), 3)


class Account:
    """Notes what it is given; the record of the number `lost` cannot be stored."""

    closed = False

    def __init__(self, lost: int | None = None, error: Exception | None = None) -> None:
        self.lost, self.error, self.given = lost, error or OSError("the disk is full"), []

    def _take(self, what: Any) -> None:
        self.given.append(what)
        if len([each for each in self.given if not isinstance(each, CheckResult)]) - 1 == self.lost:
            raise self.error

    def checked(self, check: CheckResult) -> None:
        self.given.append(check)

    released = finished = _take

    def calls(self, token_ids: tuple[int, ...]) -> bool:
        return b"call" in bytes(token for token in token_ids if token != END)

    def broken(self, outcome: str) -> None:
        self.given.append(outcome)


def writer(account: Any = None, prefill: bytes = b"") -> AnswerWriter:
    backend = ScriptedBackend(["unused"])
    return AnswerWriter(Prompt((*HEAD, *prefill), len(prefill)), "No.", backend.decode_text, account)


def test_tokens_are_recorded_before_they_are_handed_out() -> None:
    account = Account()
    mine = writer(account, b"pre")
    check = Checked(CheckResult(3, 0.1, 0.1))
    assert mine.write(check) is None and mine.write(Release((104, 105))) is None
    events = mine.take()
    assert events == [check, Released("hi", (104, 105), 5)] and mine.take() == []
    assert account.given == [check.check, events[1]]
    assert mine.write(Finish(CLEAR)) is None
    assert mine.write(CLEAR) is None
    (last,) = mine.take()
    assert isinstance(last, Finished) and account.given[-1] == last.answer
    assert (last.answer.text, last.answer.prompt_tokens, last.answer.prefill_tokens) == ("hi", 4, 3)


@pytest.mark.parametrize("error", [OSError("full"), TypeError("a fault of ours")])
def test_what_cannot_be_recorded_is_not_handed_out(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    account = Account(lost=1, error=error)
    mine = writer(account)
    mine.write(Release((104,)))
    assert mine.write(Release((105,))) is error is mine.failure
    assert account.given[-1] == "audit" and str(error) not in caplog.text
    halt = Halt(Verdict(True, math.nan, 1, "error", 1), 1)
    assert mine.write(halt) is None
    outcome = Outcome("content_filter", halt.verdict, (), (), 2)
    assert mine.write(Finish(outcome)) is None and account.given[-1] == "audit", "one record is enough"
    mine.write(outcome)
    released, halted, last = mine.take()
    assert released == Released("h", (104,), 1) and halted == Halted(halt.verdict, "No.", 1)
    assert isinstance(last, Finished) and (last.answer.text, last.answer.token_ids) == ("h\n\nNo.", (104,))


def test_a_partial_character_leaves_only_with_the_record_of_a_whole_answer() -> None:
    half = tuple("é".encode()[:1])
    for lost, text in ((None, "a\N{REPLACEMENT CHARACTER}"), (1, "a\n\nNo.")):
        mine = writer(Account(lost=lost))
        mine.write(Release((97, *half)))
        failure = mine.write(Finish(CLEAR))
        assert (failure is None) is (lost is None)
        outcome = (
            CLEAR if failure is None else Outcome("content_filter", Verdict(True, math.nan, 2, "error", 1), (), (), 2)
        )
        mine.write(outcome)
        assert mine.answer(outcome).text == text
        assert "".join(event.text for event in mine.take() if isinstance(event, Released)) == text.split("\n")[0]


def test_calls_are_asked_of_the_account() -> None:
    for text, calls in ((b"call", True), (b"none", False)):
        mine = writer(Account())
        mine.write(Release(tuple(text)))
        assert mine.write(Calls()) is calls
    assert not writer().write(Calls())


def events(account: Any, scores: dict[int, Any], text: str = "hello there", **options: Any) -> list[Event]:
    backend = ScriptedBackend([text])
    guard = Guard.from_backend(backend, ScriptedDetector(scores), schedule=Every(4, doubling=False), **options)
    turns = guard.turns([Prompt(HEAD)], max_new_tokens=20, accounts=[account])
    return [event for turn in turns for _, event in turn]


@pytest.mark.parametrize("release", ["hold", "eager", "monitor"])
@pytest.mark.parametrize("lost", [0, 1, 2, 3])
def test_a_guard_lets_nothing_out_that_is_not_recorded(release: Any, lost: int) -> None:
    account = Account(lost=lost)
    seen = events(account, {0: 0.1}, release=release)
    left = [event for event in seen if isinstance(event, Released)]
    assert left == [each for each in account.given if isinstance(each, Released)][:lost]
    assert [type(event) for event in seen[-2:]] == [Halted, Finished]
    answer = seen[-1].answer  # type: ignore[union-attr]
    assert answer.halted and answer.verdict.reason == "error"
    assert answer.text.endswith("I can't help with that.") and account.given[-1] == "audit"
    gone = sum(w.stop - w.start for w in answer.windows if w.state == "released")
    assert gone == len(answer.token_ids) == sum(len(event.token_ids) for event in left)


@pytest.mark.parametrize("text", ["a call of it", "nothing here"])
def test_a_guard_that_fails_open_halts_an_answer_with_calls_at_its_end(text: str) -> None:
    account = Account()
    seen = events(account, {0: 0.1, 4: RuntimeError("broken"), 8: 0.1}, text, on_error="open")
    answer = seen[-1].answer  # type: ignore[union-attr]
    assert answer.token_ids == (*text.encode(), END)
    assert answer.halted is ("call" in text) and answer.verdict.errors == 1
    assert account.given[-1] == answer, "the record says so as well"


def test_a_report_says_what_is_known() -> None:
    answer = events(None, {0: 0.1, 8: 0.9})[-1].answer  # type: ignore[union-attr]
    guard = Guard.from_backend(ScriptedBackend(["x"]), ScriptedDetector({})).config
    report = GuardReport.of(answer, guard, tell=True)
    record = report.record()
    assert GuardReport.read({**record, "another": 1}) == report
    assert [each["depth"] for each in record["timeline"]] == [0, 4, 8] and "timeline" not in GuardReport.of(
        answer, guard
    ).record()
    assert (record["halted"], record["reason"], record["depth"], record["score"]) == (True, "policy", 8, 0.9)
    assert (record["released_tokens"], record["withheld_tokens"], record["leak_tokens"]) == (4, 4, 4)
    unknown = GuardReport(halted=False, would_halt=False)
    assert unknown.record()["checks"] is None and GuardReport.read(unknown.record()) == unknown


def test_an_answer_that_was_given_up_meanwhile_is_no_fault_of_the_disk(caplog: pytest.LogCaptureFixture) -> None:
    account = Account(lost=0)
    account.closed = True
    backend = ScriptedBackend(["hello"])
    writer = AnswerWriter(backend.template.prompt("hi"), "REFUSED", backend.decode_text, account)
    assert isinstance(writer.write(Release((104, 101))), OSError)
    assert not caplog.records and not writer.take()
