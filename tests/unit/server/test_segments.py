"""Thoughts, calls and answers are told apart, however the text is cut into pieces."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anydepth.errors import ConfigError
from anydepth.server.answer.segments import Markers, Segmenter, SpecialTokens
from anydepth.server.answer.stops import StopTrim, held_back
from anydepth.server.answer.toolcalls import parse_calls
from anydepth.templates.call_formats import choose_format, formats
from anydepth.templates.published import Channel

THINK = Channel("<think>", "</think>", "\n</think>\n\n")
HARMONY = Channel("<|channel|>analysis<|message|>", "<|end|>", "", "<|channel|>final<|message|>")
SPECIAL = SpecialTokens(
    ("<|return|>", "<|start|>", "<|im_end|>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|eot_id|>")
)
ROWS = {row.name: row for row in formats()}
OFFERED = frozenset({"weather", "time"})


def read(text: str, markers: Markers, cuts: list[int] = ()) -> tuple[str, str, list[tuple[str, Any]]]:  # type: ignore[assignment]
    segmenter, segments, begin = Segmenter(markers), [], 0
    for cut in [*sorted(cut for cut in cuts if cut < len(text)), len(text)]:
        segments += segmenter.push(text[begin:cut])
        begin = cut
    segments += segmenter.flush()
    content = "".join(s.text for s in segments if s.kind == "content")
    thoughts = "".join(s.text for s in segments if s.kind == "reasoning")
    return content, thoughts, [(c.name, json.loads(c.arguments)) for s in segments for c in s.calls]


CASES = [
    ("hermes", 'A <tool_call>\n{"name": "weather", "arguments": {"a": 1}}\n</tool_call>',
     "A ", [("weather", {"a": 1})]),
    ("hermes", '<tool_call>{"name": "x", "arguments": {}}</tool_call><tool_call>{"name": "y"}</tool_call><|im_end|>',
     "", [("x", {}), ("y", {})]),
    ("hermes", '<tool_call>{"name": "weather", "arguments": {"a": 1}}', "", [("weather", {"a": 1})]),
    ("hermes", "<tool_call>nothing</tool_call> B", "<tool_call>nothing</tool_call> B", []),
    ("hermes", "a < b and <tool", "a < b and <tool", []),
    ("mistral", '[TOOL_CALLS][{"name": "weather", "arguments": {"a": 1}}, {"name": "time", "arguments": {}}]</s>',
     '[{"name": "weather", "arguments": {"a": 1}}, {"name": "time", "arguments": {}}]</s>', []),
    ("mistral", '[TOOL_CALLS] [{"name": "weather", "arguments": {"a": 1}}, {"name": "time", "arguments": {}}]',
     "", [("weather", {"a": 1}), ("time", {})]),
    ("mistral-args", 'Yes.[TOOL_CALLS]weather[ARGS]{"a": 1}[TOOL_CALLS]time[ARGS]{}', "Yes.",
     [("weather", {"a": 1}), ("time", {})]),
    ("llama3-json", '{"name": "weather", "parameters": {"a": 1}}<|eot_id|>', "", [("weather", {"a": 1})]),
    ("llama3-json", '<|python_tag|>{"name": "weather", "parameters": {"a": 1}}; {"name": "time", "parameters": {}}',
     "", [("weather", {"a": 1}), ("time", {})]),
    ("llama3-json", '{"name": "somebody", "parameters": {"a": 1}}', '{"name": "somebody", "parameters": {"a": 1}}', []),
    ("llama3-json", "Here is {json}", "Here is {json}", []),
    ("llama3-json", "<|python_tag|>print(1)", "print(1)", []),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "content", "calls"), CASES)
@given(cuts=st.lists(st.integers(0, 120), max_size=6))
def test_calls(name, text, content, calls, cuts):
    markers = Markers(tools=ROWS[name], offered=OFFERED, special=SPECIAL)
    assert read(text, markers, cuts) == (content, "", calls)


@pytest.mark.parametrize(
    ("markers", "text", "content", "thoughts"),
    [
        (Markers(THINK), "<think>one</think>two", "two", "one"),
        (Markers(THINK, thinking=True), "one</think>two", "two", "one"),
        (Markers(THINK), "no thoughts<|im_end|>", "no thoughts<|im_end|>", ""),
        (Markers(THINK, special=SPECIAL), "no thoughts<|im_end|>", "no thoughts", ""),
        (Markers(THINK), "<think>cut", "", "cut"),
        (Markers(THINK), "a<think>b</think>c<think>d</think>e", "ace", "bd"),
        (
            Markers(HARMONY, special=SPECIAL),
            "<|channel|>analysis<|message|>one<|end|><|start|>assistant<|channel|>final<|message|>two<|return|>",
            "two",
            "one",
        ),
        (Markers(HARMONY, special=SPECIAL), "<|channel|>final<|message|>two<|return|>", "two", ""),
        (
            Markers(THINK, tools=ROWS["hermes"]),
            "<think><tool_call>no</tool_call></think>two",
            "two",
            "<tool_call>no</tool_call>",
        ),
    ],
)
@given(cuts=st.lists(st.integers(0, 100), max_size=6))
def test_thoughts(markers, text, content, thoughts, cuts):
    assert read(text, markers, cuts) == (content, thoughts, [])


@given(text=st.text(alphabet="<think>/|ab{", max_size=40), cuts=st.lists(st.integers(0, 40), max_size=5))
def test_the_cuts_never_matter(text, cuts):
    markers = Markers(THINK, tools=ROWS["hermes"], offered=OFFERED)
    assert read(text, markers, cuts) == read(text, markers)


def test_the_format_is_found_in_the_template():
    found = {
        "{{ '<tool_call>' }}{{ '</tool_call>' }}": "hermes",
        "[TOOL_CALLS]": "mistral",
        "[TOOL_CALLS] [ARGS]": "mistral-args",
        "<|python_tag|>": "llama3-json",
    }
    for template, name in found.items():
        row = choose_format("auto", template)
        assert row is not None and row.name == name
    assert choose_format("auto", "nothing") is None and choose_format("none", "<tool_call></tool_call>") is None
    with pytest.raises(ConfigError, match="choose auto, none or one of hermes"):
        choose_format("morse", "")


def test_what_is_no_call():
    for text in ("", "[]", "{}", "[1]", '{"name": 5}', '{"name": ""}', "{" * 5000):
        assert parse_calls(text, ROWS["hermes"], OFFERED) == []
    for arguments in ('"{\\"a\\": 1"', "[1]", "5", '"text"'):  # half of the object, or none
        assert parse_calls(f'{{"name": "x", "arguments": {arguments}}}', ROWS["hermes"], OFFERED) == []
        assert parse_calls(f"x[ARGS]{arguments}", ROWS["mistral-args"], OFFERED) == []
    assert parse_calls('{"name": "x", "arguments": "{\\"a\\": 1}"}', ROWS["hermes"], ())[0].arguments == '{"a": 1}'
    for arguments in ('""', "null", "{}"):
        assert parse_calls(f'{{"name": "x", "arguments": {arguments}}}', ROWS["hermes"], ())[0].arguments == "{}"


def test_special_tokens_of_the_vocabulary_count():
    class Token(str):
        special = True

    class Plain(str):
        special = False

    added = {1: Token("<|eot|>"), 2: Plain("<tool_call>")}
    tokenizer = SimpleNamespace(all_special_tokens=["<eos>"], added_tokens_decoder=added)
    assert SpecialTokens.of(tokenizer).texts == {"<eos>", "<|eot|>"}
    assert SpecialTokens.of(object()).taken_out("any <text>") == "any <text>"


@given(
    text=st.text(alphabet="abc", max_size=30),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=5),
)
def test_a_stop_string_is_cut_off_wherever_the_pieces_end(text, stops, cuts):
    trim, out, begin = StopTrim(stops), "", 0
    for cut in [*sorted(cut for cut in cuts if cut < len(text)), len(text)]:
        out += trim.push(text[begin:cut])
        begin = cut
    out += trim.flush()
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    if not ends:
        assert out == text
    else:  # which of several overlapping stops is seen first depends on where the pieces end
        assert trim.stopped and text.startswith(out) and not any(stop in out for stop in stops)


def test_held_back():
    assert held_back("abc<to", ["<tool>"]) == 3
    assert held_back("abc", ["<tool>"]) == 0
    assert held_back("<tool>", ["<tool>"]) == 0
    assert held_back("aab", ["abx", "b"]) == 2


# -- answers that have to be JSON or calls -----------------------------------------------------------------------------

JSON = '{"a": "<think> or <tool_call>{}</tool_call>", "b": 1}'


@given(st.lists(st.integers(0, 80)))
def test_a_marker_in_json_is_a_part_of_it(cuts):
    markers = Markers(THINK, ROWS["hermes"], OFFERED, SPECIAL, structured=True)
    assert read(JSON, markers, cuts) == (JSON, "", [])
    assert read(f"<think>\nis it?\n</think>\n\n{JSON}", markers, cuts) == ("\n\n" + JSON, "\nis it?\n", [])
    call = '<tool_call>\n{"name": "weather", "arguments": {"a": 1}}\n</tool_call>'
    assert read(f"{call}\n{call}<|im_end|>", markers, cuts)[2] == [("weather", {"a": 1})] * 2


@given(st.lists(st.integers(0, 80)))
def test_json_behind_an_opener_of_the_answer(cuts):
    text = f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>{JSON}<|return|>"
    assert read(text, Markers(HARMONY, special=SPECIAL, structured=True), cuts) == (JSON, "Hm.", [])


def test_bare_json_is_a_call_only_of_a_tool_that_is_offered():
    markers = Markers(None, ROWS["llama3-json"], OFFERED, SPECIAL, structured=True)
    assert read('{"name": "weather", "parameters": {"a": 1}}', markers)[2] == [("weather", {"a": 1})]
    assert read('{"name": "Ulm", "guests": 2}', markers) == ('{"name": "Ulm", "guests": 2}', "", [])
