"""Grammars of answers that have to be JSON or calls, as llguidance reads them; schemas are vetted before."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest

from anydepth.errors import BadRequest
from anydepth.server.answer.schemas import DEEPEST_SCHEMA, LONGEST_SCHEMA, check_schemas, closed, moved
from anydepth.server.answer.structured import MOST_CALLS, CallForm, Form, Way, grammar_of
from anydepth.server.answer.toolcalls import parse_calls
from anydepth.templates.call_formats import formats
from anydepth.templates.marker_tokens import split_at_markers
from anydepth.templates.published import Channel

SPECIAL = ["<pad>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]"]
MARKERS = {text: id for id, text in enumerate(SPECIAL) if id > 1}
ROWS = {row.name: row for row in formats()}
BOOKING = {
    "type": "object",
    "properties": {"city": {"enum": ["Ulm", "Bonn"]}, "guests": {"$ref": "#/$defs/few"}},
    "required": ["city", "guests"],
    "$defs": {"few": {"type": "integer", "minimum": 1, "maximum": 20}},
}
BOOKED = '{"city": "Ulm", "guests": 12}'
WEATHER = CallForm(
    "weather", {"type": "object", "properties": {"city": {"enum": ["Ulm", "Bonn"]}}, "required": ["city"]}
)
BOOK, CLOCK = CallForm("book", BOOKING), CallForm('the "time"/now')
THOUGHTS = Channel("<think>", "</think>", "\n</think>\n\n")


@cache
def tokens(special: int = len(SPECIAL)) -> Any:
    """Bytes as tokens, and the first of the markers."""
    llguidance = pytest.importorskip("llguidance")
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: id for id, token in enumerate([*SPECIAL[:special], *letters])}
    whole = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    whole.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole.decoder = tokenizers.decoders.ByteLevel()
    whole.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in SPECIAL[:special]])
    return whole, llguidance.LLTokenizer(whole.to_str(), eos_token=[1])


def fits(form: Form, way: Way, text: str) -> bool:
    """Whether an answer may be this text, and end there."""
    import llguidance

    whole, known = tokens(len(SPECIAL) if way.markers else 2)
    matcher = llguidance.LLMatcher(known, grammar_of(form, way), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = whole.encode(text).ids
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (BOOKED, True),
        (BOOKED.replace(" ", ""), True),
        ('{"city": "Ulm", "guests": 21}', False),
        ('{"city": "Rom", "guests": 2}', False),
        ('{"city": "Ulm"}', False),
        ('{"city": "Ulm", "guests": 12, "more": 1}', False),
        ('{\n  "city": "Ulm", "guests": 12}', False),
        ('{"city": "Ulm",  "guests": 12}', False),
        (BOOKED[:-1], False),
        (BOOKED + " ", False),
        ("text", False),
    ],
)
def test_json_by_a_schema(text, good):
    assert fits(Form(BOOKING), Way(), text) is good


@pytest.mark.parametrize(
    ("text", "good"), [('{"a": [1, {"b": null}], "c": "ä\\n"}', True), ("{}", True), ("[1]", False)]
)
def test_any_object(text, good):
    assert fits(Form({"type": "object"}), Way(), text) is good


@pytest.mark.parametrize("markers", [MARKERS, None])
def test_a_model_may_think_before_it(markers):
    way = Way(THOUGHTS, markers=markers)
    for text in (BOOKED, f"<think>\nis it 12 < 13?\n</think>\n\n{BOOKED}"):
        assert fits(Form(BOOKING), way, text)
    assert not fits(Form(BOOKING), way, f"is it?</think>\n\n{BOOKED}")
    assert not fits(Form(BOOKING), way, f"<think>is it?</think>\n\nyes {BOOKED}")


@pytest.mark.parametrize("markers", [MARKERS, None])
def test_a_prompt_may_have_opened_the_thoughts(markers):
    way = Way(THOUGHTS, True, "\n</think>\n\n", markers=markers)
    assert fits(Form(BOOKING), way, f"is it?\n</think>\n\n{BOOKED}")
    assert not fits(Form(BOOKING), way, BOOKED)


def test_an_answer_behind_thoughts_may_need_an_opener_of_its_own():
    way = Way(Channel("<think>", "</think>", "", "[ARGS]final"), False, "[ARGS]final", markers=MARKERS)
    for before in ("[ARGS]final", "<think>is it?</think>[ARGS]final"):
        assert fits(Form(BOOKING), way, before + BOOKED)
    assert not fits(Form(BOOKING), way, "<think>is it?</think>" + BOOKED)


def test_what_stands_before_an_answer_is_written_first():
    way = Way(opener="[TOOL_CALLS]final", markers=MARKERS)
    assert fits(Form(BOOKING), way, "[TOOL_CALLS]final" + BOOKED) and not fits(Form(BOOKING), way, BOOKED)
    for opener in ("", " ", "\n"):
        for text in (" " + BOOKED, opener + BOOKED, BOOKED):
            assert fits(Form(BOOKING), Way(opener=opener), text)
        assert not fits(Form(BOOKING), Way(opener=opener), "  " + BOOKED)


CALLS = {
    "hermes": '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>',
    "mistral-args": '[TOOL_CALLS]weather[ARGS]{"city": "Ulm"}',
    "mistral": '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Ulm"}}]',
    "llama3-json": '{"name": "weather", "parameters": {"city": "Ulm"}}',
    "llama3.2-json": '{"name": "weather", "parameters": {"city": "Ulm"}}',
}


def two(call: str, row: str) -> str:
    """The call twice."""
    if row == "mistral":
        return f"{call[:-1]}, {call[len('[TOOL_CALLS][') :]}"
    return call + ("\n" if row == "hermes" else "") + call


@pytest.mark.parametrize("row", CALLS)
def test_a_call_in_each_format(row):
    form, way, call = Form(None, [WEATHER, BOOK, CLOCK]), Way(tools=ROWS[row], markers=MARKERS), CALLS[row]
    assert fits(form, way, call)
    booked = call.replace("weather", "book").replace('{"city": "Ulm"}', BOOKED)
    assert fits(form, way, booked)
    assert not fits(form, way, call.replace("Ulm", "Rom")) and not fits(form, way, booked.replace("12", "21"))
    assert not fits(form, way, call.replace("weather", "whether")) and not fits(form, way, "Let me look. " + call)
    name = 'the "time"/now' if row == "mistral-args" else 'the \\"time\\"/now'
    clock = call.replace("weather", name).replace('{"city": "Ulm"}', "{}")
    assert fits(form, way, clock) and not fits(form, way, clock.replace("{}", '{"a": 1}'))
    for text, asked in ((call, "weather"), (booked, "book"), (clock, CLOCK.name)):
        inner = text.removeprefix(ROWS[row].open).removesuffix(ROWS[row].close)
        (read,) = parse_calls(inner, ROWS[row], {asked})
        assert read.name == asked


@pytest.mark.parametrize("row", CALLS)
def test_several_calls_only_where_they_are_wanted(row):
    way, call = Way(tools=ROWS[row], markers=MARKERS), CALLS[row]
    assert fits(Form(None, [WEATHER]), way, two(call, row)) is (not row.startswith("llama"))
    assert not fits(Form(None, [WEATHER], several=False), way, two(call, row))
    assert fits(Form(None, [WEATHER], several=False), way, call)


def test_no_more_calls_than_that():
    way = Way(tools=ROWS["hermes"], markers=MARKERS)
    assert fits(Form(None, [WEATHER]), way, "\n".join([CALLS["hermes"]] * MOST_CALLS))
    assert not fits(Form(None, [WEATHER]), way, "\n".join([CALLS["hermes"]] * (MOST_CALLS + 1)))


@pytest.mark.parametrize("row", CALLS)
def test_json_or_a_call(row):
    form, way = Form(BOOKING, [WEATHER]), Way(tools=ROWS[row], markers=MARKERS)
    assert fits(form, way, CALLS[row]) and fits(form, way, BOOKED) and not fits(form, way, "text")


def test_where_no_format_of_calls_is_known():
    assert fits(Form(BOOKING, [WEATHER]), Way(), BOOKED)
    with pytest.raises(BadRequest, match="how this model writes calls is not known; send 'auto'") as caught:
        grammar_of(Form(None, [WEATHER]), Way())
    assert (caught.value.param, caught.value.code) == ("tool_choice", "unsupported")


def test_text_is_split_at_the_longest_markers():
    markers = {"<a>": 1, "<a><b>": 2, "<b>": 3}
    assert split_at_markers("x<a><b>y\n<b>", markers) == ["x", 2, "y\n", 3]
    assert split_at_markers("", markers) == [] and split_at_markers("<c>", {}) == ["<c>"]


# -- schemas -----------------------------------------------------------------------------------------------------------


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


def test_schemas_are_held_to_limits():
    check_schemas({"a": nested(DEEPEST_SCHEMA), "b": {"const": "x" * (LONGEST_SCHEMA // 2)}})
    with pytest.raises(BadRequest, match=f"a has {DEEPEST_SCHEMA + 1} levels of objects and lists; send 64") as caught:
        check_schemas({"a": nested(DEEPEST_SCHEMA + 1)})
    assert caught.value.param == "a"
    with pytest.raises(BadRequest, match=r"up to b, have more than 100000 characters; send fewer") as caught:
        check_schemas({"a": {"const": "x" * (LONGEST_SCHEMA // 2)}, "b": {"const": "x" * (LONGEST_SCHEMA // 2)}})
    assert caught.value.param == "b"


def test_objects_are_closed_where_the_schema_does_not_say():
    schema = {
        "properties": {"a": {"$ref": "#/$defs/b"}, "c": {"properties": {}, "additionalProperties": True}},
        "$defs": {"b": {"items": {"properties": {"x": {"const": {"properties": {}}}}}}},
    }
    shut = closed(schema)
    assert shut["additionalProperties"] is False
    assert shut["$defs"]["b"]["items"]["additionalProperties"] is False
    assert shut["properties"]["c"] == schema["properties"]["c"]
    assert shut["$defs"]["b"]["items"]["properties"]["x"] == {"const": {"properties": {}}}
    assert "additionalProperties" not in schema


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        {"properties": {"a": {}}, "anyOf": [{"required": ["a"]}, {"properties": {"b": {}}}]},
        {"$ref": "#/$defs/x", "properties": {"a": {}}, "$defs": {"x": {"properties": {"b": {}}}}},
        {"type": "object"},
    ],
)
def test_schemas_whose_properties_are_joined_stay_as_they_are(schema: Mapping[str, Any]):
    assert closed(schema) == schema


def test_references_move_with_their_schema():
    schema = {"properties": {"$ref": {"$ref": "#/$defs/x"}, "b": {"$ref": "#"}}, "anyOf": [{"$ref": "other"}]}
    assert moved(schema, "#/properties/a") == {
        "properties": {"$ref": {"$ref": "#/properties/a/$defs/x"}, "b": {"$ref": "#/properties/a"}},
        "anyOf": [{"$ref": "other"}],
    }
    assert json.dumps(schema).count("#/properties") == 0
