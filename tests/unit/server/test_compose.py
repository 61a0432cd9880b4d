"""Events become what a client reads; calls wait for the end, and what is withheld never shows."""

from dataclasses import replace
from math import nan
from typing import Any

import pytest

from anydepth.server.answer.blocked import refused_text
from anydepth.server.answer.compose import Composer, Delta, End, Reading, ends_of_calls, has_calls
from anydepth.server.answer.segments import Markers
from anydepth.templates.call_formats import formats
from anydepth.templates.published import Channel
from anydepth.types import Answer, Checked, CheckResult, Finished, Halted, Released, Verdict

HERMES = next(row for row in formats() if row.name == "hermes")
CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
CLEAR = Verdict(False, 0.1, 0)
HALT = Verdict(True, 0.9, 5)


def check(depth: int, error: str | None = None) -> Checked:
    return Checked(CheckResult(depth, nan if error else 0.1, 0.1, error=error))


def released(text: str, depth: int) -> Released:
    return Released(text, tuple(text.encode()), depth)


def finished(reason: Any = "stop", verdict: Verdict = CLEAR) -> Finished:
    return Finished(Answer("", (), reason, verdict, (), (), 1, 0, 0))


def composer(tools: bool = False, rule: Any = "as_answer", stops: tuple[str, ...] = ()) -> Composer:
    channel = Channel("<think>", "</think>", "") if rule != "as_answer" else None
    markers = Markers(channel, HERMES if tools else None, frozenset({"f"}))
    return Composer(Reading("No.", stops, markers, rule, lambda ids: bytes(ids).decode()))


def play(writer: Composer, *events: Any) -> tuple[str, list[str], list[str], str | None]:
    pieces = [piece for event in events for piece in writer.write(event)]
    deltas = [piece for piece in pieces if isinstance(piece, Delta)]
    ends = [piece for piece in pieces if isinstance(piece, End)]
    thoughts = [delta.reasoning for delta in deltas if delta.reasoning]
    calls = [call.name for delta in deltas for call in delta.calls]
    text = "".join(delta.content for delta in deltas)
    if ends and ends[0].refusal:
        text += refused_text(ends[0].refusal, wrote=ends[0].wrote)
    return text, thoughts, calls, ends[0].finish_reason if ends else None


def test_plain_text():
    assert play(composer(), check(0), released("a", 1), released("b", 2), finished()) == ("ab", [], [], "stop")


def test_a_refusal_stands_apart():
    assert play(composer(), released("a", 1), Halted(HALT, "No.", 3), finished("content_filter", HALT))[0] == "a\n\nNo."
    assert play(composer(), Halted(HALT, "No.", 3), finished("content_filter", HALT))[0] == "No."
    blank = (released(" \n", 2), Halted(HALT, "No.", 3), finished("content_filter", HALT))
    assert play(composer(), *blank)[0] == " \nNo."


@pytest.mark.parametrize(("text", "wrote"), [("xa", True), ("a", True), ("", False)])
def test_the_end_of_a_halted_answer_has_its_refusal(text, wrote):
    """What may be the beginning of a stop string leaves before it."""
    writer = composer(stops=("ab",))
    released_before = [released(text, 2)] if text else []
    events = (*released_before, Halted(HALT, "No.", 3), finished("content_filter", HALT))
    *deltas, end = [piece for event in events for piece in writer.write(event)]
    assert "".join(delta.content for delta in deltas) == text
    assert (end.finish_reason, end.refusal, end.wrote) == ("content_filter", "No.", wrote)


def test_the_end_of_any_other_answer_has_none():
    writer = composer()
    (end,) = [piece for event in (released("a", 1), finished()) for piece in writer.write(event)][1:]
    assert (end.finish_reason, end.refusal) == ("stop", "")


def test_calls_wait_for_the_end_of_their_answer():
    """However well they are covered by checks: an agent runs a call at once, and a later halt cannot take it back."""
    writer, end = composer(tools=True), len(CALL)
    assert play(writer, check(0), released(CALL, end), check(end), released(" and" + CALL, 2 * end + 4)) == (
        " and", [], [], None,
    )  # fmt: skip
    pieces = [piece for event in (check(2 * end + 4), finished()) for piece in writer.write(event)]
    assert [len(piece.calls) for piece in pieces if isinstance(piece, Delta)] == [0, 2]
    assert isinstance(pieces[-1], End) and pieces[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize("failed", [None, "CheckError: x"])
def test_a_call_is_dropped_when_the_answer_is_halted(failed):
    """Also one that a check had passed long before the halt."""
    writer = composer(tools=True)
    events = (
        check(0),
        released("ok " + CALL, 50),
        check(50, failed),
        released(" more", 55),
        check(75),
        Halted(HALT, "No.", 0),
        finished("content_filter", HALT),
    )
    assert play(writer, *events) == ("ok  more\n\nNo.", [], [], "content_filter")


@pytest.mark.parametrize("text", ["ok " + CALL, CALL + " ok", "ok " + CALL[: -len("</tool_call>")]])
def test_a_whole_answer_is_searched_for_calls(text):
    """The guard's flow asks before an answer with a failed check is finished, and halts it if there are some."""
    reading = composer(tools=True)._reading
    assert has_calls(reading, tuple(text.encode()))
    assert not has_calls(reading, b"ok <tool_call" + b"nothing of the kind")
    assert not has_calls(composer()._reading, tuple(text.encode())), "the request offers no tools"


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("no call", []),
        (CALL, [len(CALL)]),
        (f"{CALL} and {CALL}\n", [len(CALL), 2 * len(CALL) + 5]),
        (f"see {CALL.removesuffix('</tool_call>')}", [len(CALL) + 4 - len("</tool_call>")]),
        (f"{CALL} <tool_call>broken", [len(CALL)]),
    ],
)
def test_where_the_calls_of_a_whole_answer_end(text: str, ends: list[int]):
    markers = Markers(None, HERMES, frozenset({"f"}))
    reading = Reading("No.", (), markers, decode=lambda ids: bytes(i for i in ids if i < 256).decode())
    ids = tuple(text.encode())
    assert ends_of_calls(reading, {256}, ids) == ends_of_calls(reading, {256}, (*ids, 256)) == ends
    assert ends_of_calls(replace(reading, one_call=True), {256}, ids) == ends[:1]


def test_a_list_of_calls_ends_once_for_each():
    row = next(row for row in formats() if row.name == "mistral")
    reading = Reading("No.", (), Markers(None, row, frozenset({"f"})), decode=lambda ids: bytes(ids).decode())
    text = '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "f", "arguments": {}}]'
    assert ends_of_calls(reading, {256}, tuple(text.encode())) == [len(text)] * 2


def test_an_answer_that_was_too_long_has_its_whole_calls():
    half = CALL[:30]
    assert play(composer(tools=True), released(CALL + half, 70), finished("length")) == (half, [], ["f"], "length")


def test_thoughts_as_a_whole():
    writer = composer(rule="whole")
    assert play(writer, check(10), released("<think>one", 10))[1] == []
    assert play(writer, check(30), released(" two</think>three", 27))[:2] == ("three", ["one two"])


def test_thoughts_that_are_never_shown():
    writer = composer(rule="hidden")
    assert play(writer, check(99), released("<think>one</think>two", 21), finished())[:2] == ("two", [])


@pytest.mark.parametrize(("rule", "thoughts"), [("as_answer", ["one"]), ("whole", []), ("hidden", [])])
def test_a_thought_that_is_halted_goes_no_further(rule: Any, thoughts: list[str]):
    """What was checked before may have left; nothing of it leaves afterwards, and no answer follows."""
    markers = Markers(Channel("<think>", "</think>", ""))
    writer = Composer(Reading("No.", (), markers, rule, lambda ids: bytes(ids).decode()))
    events = (check(0), released("<think>one", 10), check(10), Halted(HALT, "No.", 3), finished("content_filter", HALT))
    assert play(writer, *events) == ("No.", thoughts, [], "content_filter")


def test_nothing_follows_a_stop_string():
    writer = composer(stops=("END",))
    assert play(writer, released("one E", 5), released("ND two", 11), finished())[0] == "one "
    assert play(composer(stops=("END",)), released("one EN", 6), finished())[0] == "one EN"


def test_calls_do_not_leave_if_the_answer_is_halted_at_its_end():
    """A check failed, or the account of the finished answer cannot be kept."""
    writer = composer(tools=True)
    events = (check(0), released("ok " + CALL, 50), Halted(HALT, "No.", 0), finished("content_filter", HALT))
    assert play(writer, *events) == ("ok \n\nNo.", [], [], "content_filter")


# -- answers that have to be JSON or calls -----------------------------------------------------------------------------


def structured(stops: tuple[str, ...] = ()) -> Composer:
    markers = Markers(Channel("<think>", "</think>", ""), HERMES, frozenset({"f"}), structured=True)
    return Composer(Reading("No.", stops, markers, decode=lambda ids: bytes(ids).decode(), structured=True))


def test_json_is_kept_until_its_answer_has_ended():
    writer = structured()
    events = (check(0), released("<think>Hm.</think>\n\n{", 20), check(20), released('"a": 1}', 27), check(27))
    assert play(writer, *events) == ("", ["Hm."], [], None)
    content, end = writer.write(finished())
    assert isinstance(content, Delta) and content.content == '{"a": 1}'
    assert isinstance(end, End) and (end.finish_reason, end.structured, end.refusal) == ("stop", True, "")


def test_half_of_it_leaves_where_it_was_too_long():
    assert play(structured(), released('{"a": ', 6), finished("length")) == ('{"a": ', [], [], "length")
    assert play(structured(), released(CALL[:20], 20), finished("length")) == (CALL[:20], [], [], "length")


def test_nothing_of_it_leaves_if_the_answer_is_halted():
    """Also where a record of the finished answer could not be stored."""
    for text, stops in (('{"a": 1}', ()), ('{"a": EN', ("END",)), (CALL, ())):
        writer = structured(stops)
        events = (check(0), released(text, 50), Halted(HALT, "No.", 0), finished("content_filter", HALT))
        pieces = [piece for event in events for piece in writer.write(event)]
        *deltas, end = pieces
        assert not any(isinstance(each, Delta) and (each.content or each.calls) for each in deltas)
        assert isinstance(end, End) and (end.refusal, end.structured, end.wrote) == ("No.", True, False)


def test_a_forced_call_leaves_as_any_other():
    assert play(structured(), released(CALL, 50), finished()) == ("", [], ["f"], "tool_calls")
