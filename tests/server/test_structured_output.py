"""JSON and forced calls by OpenAI's client: a tiny random model writes them, whatever it would write if it were free.

The server runs in this process; what its checks score is up to each test.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest
from starlette.testclient import TestClient

from anydepth import Every, Guard
from anydepth.audit import open_audit
from anydepth.audit.reading import read_records
from anydepth.audit.verify import verify_audit
from anydepth.backends.transformers import TransformersBackend
from anydepth.server.engine.transformers_engine import TransformersEngine
from anydepth.server.http.app import build_app
from anydepth.server.service import Service
from anydepth.settings import parse_settings
from anydepth.testing import ScriptedDetector
from tests import tiny
from tests.server.scripted_server import engine_of

pytest.importorskip("llguidance")

REFUSAL = "No."


class Booking(pydantic.BaseModel):
    city: Literal["Ulm", "Bonn"]
    guests: int = pydantic.Field(ge=1, le=20)
    smoking: bool


FORM: Any = {"type": "json_schema", "json_schema": {"name": "Booking", "schema": Booking.model_json_schema()}}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Ulm", "Bonn"]}}, "required": ["city"]},
    },
}
BOOK: Any = {"type": "function", "function": {"name": "book", "parameters": Booking.model_json_schema()}}
NOW: Any = {"type": "function", "function": {"name": "now"}}
THIS: Any = {"type": "function", "function": {"name": "book"}}


class Server:
    """A server with a tiny model; `scores` is what the checks give, by depth."""

    def __init__(self, backend: TransformersBackend, tables: dict[str, Any]) -> None:
        settings = parse_settings({"overrides": {"release": ["eager", "monitor"], "checks": True}, **tables})
        self.detector = ScriptedDetector({})
        guard = Guard.from_backend(backend, self.detector, schedule=Every(10), refusal=REFUSAL)
        self.guard = guard.with_options(on_error=settings.guard.on_error)
        engine = TransformersEngine(self.guard, model="tiny")
        self.http = TestClient(build_app(Service(engine, settings, open_audit(settings.audit)), []))
        self.client = openai.OpenAI(
            base_url="http://testserver/v1", api_key="none", http_client=self.http, max_retries=0
        )

    def ask(self, **fields: Any) -> Any:
        given = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "book a table"}],
            "max_tokens": 150,
            **fields,
        }
        return self.client.chat.completions.create(**{"temperature": 2, "seed": 3, **given})

    def stream(self, **fields: Any) -> list[Any]:
        return list(self.ask(stream=True, **fields))

    def refused(self, **fields: Any) -> Any:
        with pytest.raises(openai.BadRequestError) as caught:
            self.ask(**fields)
        return caught.value


@pytest.fixture(scope="module")
def backend() -> TransformersBackend:
    return TransformersBackend(tiny.tiny_model("Llama", tiny.SPELLING), tiny.spelling_tokenizer(), ride="auto")


@pytest.fixture
def start(backend: TransformersBackend) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def go(**tables: Any) -> Server:
        servers.append(Server(backend, tables))
        servers[-1].http.__enter__()
        return servers[-1]

    yield go
    for each in servers:
        each.http.__exit__(None, None, None)


@pytest.fixture
def server(start: Callable[..., Server]) -> Server:
    return start()


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_an_answer_keeps_its_schema(server):
    (choice,) = server.ask(response_format=FORM).choices
    assert choice.finish_reason == "stop" and choice.message.refusal is None and not choice.anydepth["halted"]
    assert set(json.loads(choice.message.content)) == {"city", "guests", "smoking"}
    assert Booking.model_validate_json(choice.message.content)
    expected = server.guard.generate(
        "book a table", grammar=FORM["json_schema"]["schema"] | {"additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}},
        max_new_tokens=150, temperature=2.0, do_sample=True, seed=3,
    )  # fmt: skip
    assert choice.message.content == expected.text


def test_the_clients_own_parsers_read_it(server):
    completions: Any = server.client.chat.completions
    ask: Any = {"model": "tiny", "messages": [{"role": "user", "content": "book"}], "max_tokens": 150, "temperature": 2}
    (choice,) = completions.parse(**ask, response_format=Booking).choices
    assert isinstance(choice.message.parsed, Booking)
    with completions.stream(**ask, response_format=Booking) as stream:
        (choice,) = stream.get_final_completion().choices
    assert isinstance(choice.message.parsed, Booking)


def test_answers_of_one_request_keep_it_each(server):
    choices = server.ask(response_format=FORM, n=3).choices
    assert all(Booking.model_validate_json(choice.message.content) for choice in choices)
    assert len({choice.message.content for choice in choices}) > 1


def test_any_object(server):
    (choice,) = server.ask(response_format={"type": "json_object"}, max_tokens=40).choices
    text = choice.message.content
    assert text.startswith("{") and (choice.finish_reason == "length" or isinstance(json.loads(text), dict))


def test_a_stream_has_it_in_one_piece_at_the_end(server):
    chunks = server.stream(response_format=FORM, extra_body={"anydepth": {"checks": True}})
    (place,) = [place for place, chunk in enumerate(chunks) if chunk.choices[0].delta.content]
    assert Booking.model_validate_json(text_of(chunks)) and place == len(chunks) - 2
    told = [chunk.choices[0].anydepth["check"]["depth"] for chunk in chunks[1:place]]
    assert told[:3] == [0, 1, 2] and len(told) > 6
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert text_of(chunks) == server.ask(response_format=FORM).choices[0].message.content


def test_an_answer_that_is_cut_by_its_length_is_half_an_object(server):
    for choice in (server.ask(response_format=FORM, max_tokens=9).choices[0],):
        assert choice.finish_reason == "length" and 0 < len(choice.message.content) <= 9
    chunks = server.stream(response_format=FORM, max_tokens=9)
    assert text_of(chunks) == choice.message.content and chunks[-1].choices[0].finish_reason == "length"
    with pytest.raises(openai.LengthFinishReasonError):
        server.client.chat.completions.parse(
            model="tiny", messages=[{"role": "user", "content": "x"}], max_tokens=9, response_format=Booking
        )


@pytest.mark.parametrize("fields", [{"response_format": FORM}, {"tools": [BOOK, NOW], "tool_choice": THIS}])
@pytest.mark.parametrize("depth", [0, 1, 8, 20])
@pytest.mark.parametrize("release", ["hold", "eager"])
def test_a_halted_answer_is_a_refusal_alone(server, fields, depth, release):
    server.detector.scores = {0: 0.1, depth: 0.9}
    fields = {**fields, "extra_body": {"anydepth": {"release": release}}}
    (choice,) = server.ask(**fields).choices
    assert choice.finish_reason == "content_filter" and choice.anydepth["depth"] == depth
    assert choice.message.content is None and choice.message.refusal == REFUSAL and not choice.message.tool_calls
    assert choice.anydepth["leak_tokens"] == choice.anydepth["released_tokens"] == 0
    assert choice.anydepth["withheld_tokens"] == depth
    *before, last = [chunk.choices[0] for chunk in server.stream(**fields)]
    assert not any(each.delta.content or each.delta.tool_calls for each in before)
    assert last.delta.refusal == REFUSAL and last.delta.content is None and last.finish_reason == "content_filter"
    assert last.anydepth == choice.anydepth


def test_the_parser_of_a_halted_answer_names_the_filter(server):
    server.detector.scores = {20: 0.9}
    messages: Any = [{"role": "user", "content": "x"}]
    with pytest.raises(openai.ContentFilterFinishReasonError):
        server.client.chat.completions.parse(model="tiny", messages=messages, response_format=Booking)


def test_under_monitor_it_leaves_whatever_the_checks_found(server):
    server.detector.scores = {20: 0.9}
    (choice,) = server.ask(response_format=FORM, extra_body={"anydepth": {"release": "monitor"}}).choices
    assert Booking.model_validate_json(choice.message.content) and choice.anydepth["would_halt"]


def test_a_block_as_an_error_holds_for_streams_too(start):
    """Nothing of such an answer has left when it is halted."""
    server = start(blocked={"style": "error"})
    server.detector.scores = {20: 0.9}
    for stream in (False, True):
        error = server.refused(response_format=FORM, stream=stream)
        assert error.code == "content_filter" and error.body["anydepth"]["depth"] == 20


def test_the_audit_says_that_it_left_at_its_end(start, tmp_path):
    path = tmp_path / "audit.jsonl"
    server = start(audit={"kind": "jsonl", "path": str(path)})
    server.ask(response_format=FORM)
    server.detector.scores = {20: 0.9}
    server.ask(response_format=FORM)
    clear, blocked = [each for each in read_records(path) if each["kind"] == "answer"]
    assert [window["state"] for window in clear["windows"]] == ["released"]
    assert [window["state"] for window in blocked["windows"]] == ["withheld"]
    assert sum(each["kind"] == "window" for each in read_records(path)) == 1
    report = verify_audit(path)
    assert report.ok, report.violations


# -- calls -------------------------------------------------------------------------------------------------------------


def test_a_function_that_is_named_is_called(server):
    for streamed in (False, True):
        fields = {"tools": [WEATHER, BOOK], "tool_choice": THIS}
        if streamed:
            chunks = server.stream(**fields)
            calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
            reason, text = chunks[-1].choices[0].finish_reason, text_of(chunks)
        else:
            (choice,) = server.ask(**fields).choices
            calls, reason, text = choice.message.tool_calls, choice.finish_reason, choice.message.content or ""
        (call,) = calls
        assert (call.function.name, reason, text) == ("book", "tool_calls", "")
        assert Booking.model_validate_json(call.function.arguments)


@pytest.mark.parametrize("parallel", [True, False])
def test_a_call_is_required(server, parallel):
    kinds = {"weather": {"city"}, "book": {"city", "guests", "smoking"}, "now": set()}
    names, counts = set(), set()
    for seed in range(5):
        (choice,) = server.ask(
            tools=[WEATHER, BOOK, NOW], tool_choice="required", parallel_tool_calls=parallel, seed=seed, max_tokens=150
        ).choices
        calls = choice.message.tool_calls
        assert calls and choice.finish_reason in ("tool_calls", "length")
        assert all(set(json.loads(call.function.arguments)) == kinds[call.function.name] for call in calls)
        names |= {call.function.name for call in calls}
        counts.add(len(calls))
    assert len(names) > 1 and (parallel or counts == {1})


def test_json_or_a_call(server):
    found = set()
    for seed in range(4):
        options: Any = {"seed": seed, "max_tokens": 120, "parallel_tool_calls": False}
        (choice,) = server.ask(response_format=FORM, tools=[WEATHER], **options).choices
        if choice.message.tool_calls:
            found.add("call")
        elif choice.finish_reason == "stop":
            assert Booking.model_validate_json(choice.message.content)
            found.add("json")
    assert found
    (choice,) = server.ask(response_format=FORM, tools=[WEATHER], tool_choice="none").choices
    assert Booking.model_validate_json(choice.message.content)


def test_calls_after_a_check_that_failed_open_do_not_leave(start):
    server = start(guard={"on_error": "open"})
    server.detector.scores = {20: RuntimeError("broken"), 21: 0.1}
    (choice,) = server.ask(tools=[BOOK], tool_choice="required").choices
    assert choice.finish_reason == "content_filter" and not choice.message.tool_calls
    assert choice.message.refusal == REFUSAL and choice.anydepth["reason"] == "error"
    (choice,) = server.ask(response_format=FORM).choices
    assert Booking.model_validate_json(choice.message.content), "JSON is not run"


# -- what is refused ---------------------------------------------------------------------------------------------------


def by_schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def tool(parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


DEEP: dict[str, Any] = {"type": "integer"}
for _ in range(70):
    DEEP = {"items": DEEP}
SCHEMA = "response_format.json_schema.schema"
PARAMETERS = "tools[1].function.parameters"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": "json"}, "response_format", 'response_format is "json"; send an object'),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'text', 'json_object' or 'json_schema'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "send the schema, or another"),
        ({"response_format": {**FORM, "type": "json_object"}}, "response_format.json_schema", "send that, or leave it"),
        (by_schema([]), SCHEMA, "is a list of 0; send an object"),
        (by_schema({"type": "strange"}), SCHEMA, "Invalid type: strange; send another schema"),
        (by_schema({"not": {}}), SCHEMA, 'Unimplemented keys: ["not"]'),
        (by_schema({"type": "string", "format": "nope"}), SCHEMA, "Unknown format: nope"),
        (by_schema({"$ref": "#/$defs/none"}), SCHEMA, "Pointer '/$defs/none' does not exist"),
        (by_schema(DEEP), SCHEMA, "has 71 levels of objects and lists; send 64 at most"),
        (by_schema({"const": "x" * 100_000}), SCHEMA, "have more than 100000 characters"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools; send tools, or choose 'auto'"),
        ({"tool_choice": "any", "tools": [NOW]}, "tool_choice", "choose 'auto', 'none' or 'required'"),
        ({"tool_choice": {"type": "function"}, "tools": [NOW]}, "tool_choice.function", "is missing; send it"),
        ({"tool_choice": 5, "tools": [NOW]}, "tool_choice", "or send an object that names a function"),
        ({"tool_choice": THIS, "tools": [NOW]}, "tool_choice.function.name", 'is "book", and no tool has that name'),
        ({"tools": [NOW, tool({"type": "string"})], "tool_choice": "required"}, PARAMETERS + ".type", 'send "object"'),
        ({"tools": [NOW, tool({"not": {}})], "tool_choice": "required"}, PARAMETERS, "Unimplemented keys"),
    ],
)
def test_a_form_that_cannot_be_kept_is_named(server, fields, param, words):
    error = server.refused(**fields)
    assert error.param == param and words in error.body["message"], error


def test_a_schema_that_turns_out_to_be_too_complex(server):
    """All of its properties may be left out, so that any may come next."""
    fields = by_schema({"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(3000)}})
    error = server.refused(**fields)
    assert error.code == "invalid_value", error
    words = r"the grammar cannot be followed: .*Current row has \d+ items; .*; simplify it$"
    assert re.search(words, error.body["message"]), error
    with pytest.raises(openai.APIError, match="the grammar cannot be followed"):
        server.stream(**fields)
    (choice,) = server.ask(response_format=FORM).choices
    assert Booking.model_validate_json(choice.message.content)


def test_a_prefill_is_not_continued_as_json(server):
    messages = [{"role": "user", "content": "book"}, {"role": "assistant", "content": '{"city": '}]
    error = server.refused(response_format=FORM, messages=messages)
    assert error.param == "response_format" and "response_format is about a whole answer" in error.body["message"]


def test_a_template_whose_calls_are_not_known(start):
    server = start(tools={"format": "none"})
    error = server.refused(tools=[BOOK], tool_choice="required")
    assert error.param == "tool_choice" and error.code == "unsupported"
    (choice,) = server.ask(response_format=FORM, tools=[BOOK]).choices
    assert Booking.model_validate_json(choice.message.content)


def test_an_engine_that_holds_answers_to_no_grammar():
    settings = parse_settings({"tools": {"format": "hermes"}})
    with TestClient(build_app(Service(engine_of(settings), settings, open_audit(settings.audit)), [])) as http:
        for fields, param in (
            ({"response_format": FORM}, "response_format"),
            ({"tool_choice": "required"}, "tool_choice"),
        ):
            body = {"model": "scripted", "messages": [{"role": "user", "content": "x"}], "tools": [NOW], **fields}
            response = http.post("/v1/chat/completions", json=body)
            error = response.json()["error"]
            assert response.status_code == 400 and error["param"] == param and error["code"] == "unsupported"
            assert error["message"] == f"{param} is not offered by this server; leave it out"


def test_text_is_as_free_as_before(server):
    free, asked = (
        server.ask(**fields, max_tokens=20).choices[0] for fields in ({}, {"response_format": {"type": "text"}})
    )
    assert free.message.content == asked.message.content
