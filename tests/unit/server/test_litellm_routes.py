"""What the LiteLLM example reads of requests and answers; it needs no LiteLLM for that."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "litellm"


def _routes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("anydepth_routes", EXAMPLE / "anydepth_routes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("anydepth_routes", module)
    spec.loader.exec_module(module)
    return module


ROUTES = _routes()


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in events)


def chunk(index: int = 0, **delta: Any) -> Any:
    return SimpleNamespace(choices=[SimpleNamespace(index=index, delta=SimpleNamespace(**delta))])


def call(index: int | None, name: str | None, arguments: str) -> Any:
    return SimpleNamespace(index=index, function=SimpleNamespace(name=name, arguments=arguments))


def test_a_chat_is_read_with_its_thoughts_and_calls():
    reader = ROUTES.Chat()
    assert reader.take(chunk(reasoning_content="let me see")) == 10
    assert reader.take(chunk(content="it is")) == 5 and not reader.turns[0].calling
    assert reader.take(chunk(content=" so", tool_calls=[call(0, "look_up", '{"a"')])) == 3 + 7 + 4
    assert reader.take(chunk(tool_calls=[call(0, None, ": 1}")])) == 4 and reader.turns[0].calling
    assert reader.take(chunk(index=1, content="another")) == 7
    assert reader.turns[0].content == 'let me see\n\nit is so\n\nlook_up\n\n{"a": 1}'
    assert reader.turns[1].content == "another"


def test_thoughts_that_come_as_blocks_only_are_read_once():
    reader = ROUTES.Chat()
    block = [{"type": "thinking", "thinking": "hm"}]
    reader.take(chunk(thinking_blocks=block))
    reader.take(chunk(reasoning_content="m", thinking_blocks=[{"type": "thinking", "thinking": "m"}]))
    assert reader.turns[0].content == "hmm"


def test_bytes_of_messages_are_read_event_by_event():
    whole = sse(
        {"type": "message_start", "message": {"content": []}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm, ü"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "x"}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": "He"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "llo"}},
        {"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "name": "f", "input": {}}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"a": 1}'}},
        {"type": "message_stop"},
    )
    for size in (1, 7, len(whole)):
        reader = ROUTES.Messages()
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        grown = sum(reader.take(piece) for piece in pieces)
        assert reader.turns[0].content == 'hm, ü\n\nHello\n\nf\n\n{"a": 1}' and reader.unread == b""
        assert grown == 5 + 5 + 1 + 8 and reader.turns[0].calling
    reader = ROUTES.Messages()
    reader.take(whole[:-1])
    assert reader.unread  # nothing may leave while an event is not whole


def test_a_whole_answer_of_messages_is_read():
    reader = ROUTES.Messages()
    blocks = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "yes"},
        {"type": "tool_use", "name": "f", "input": {"a": 1}},
    ]
    reader.take({"type": "message", "content": blocks})
    assert reader.turns[0].content == 'hm\n\nyes\n\nf\n\n{"a": 1}'


def responses(*events: dict[str, Any]) -> Any:
    reader = ROUTES.Responses()
    for event in events:
        reader.take(event)
    return reader


ITEM = {"type": "message", "content": [{"type": "output_text", "text": "hello"}]}
AT = {"output_index": 0, "content_index": 0}


def test_what_responses_repeat_is_read_once():
    reader = responses(
        {"type": "response.created", "response": {"output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": {"type": "message", "content": []}},
        {"type": "response.content_part.added", **AT, "part": {"type": "output_text", "text": ""}},
        {"type": "response.output_text.delta", **AT, "delta": "hel"},
        {"type": "response.output_text.delta", **AT, "delta": "lo"},
        {"type": "response.output_text.done", **AT, "text": "hello"},
        {"type": "response.content_part.done", **AT, "part": ITEM["content"][0]},
        {"type": "response.output_item.done", "output_index": 0, "item": ITEM},
        {"type": "response.completed", "response": {"output": [ITEM]}},
    )
    assert reader.turns[0].content == "hello"


def test_what_is_said_in_the_last_event_only_is_read_too():
    reader = responses(
        {"type": "response.output_text.delta", **AT, "delta": "fine"},
        {"type": "response.completed", "response": {"output": [ITEM]}},
    )
    assert reader.turns[0].content == "finehello"


def test_thoughts_and_calls_of_responses_are_read():
    called = {"type": "function_call", "name": "f", "arguments": '{"a": 1}'}
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "x"}
    reader = responses(
        {"type": "response.reasoning_summary_text.delta", "output_index": 0, "summary_index": 0, "delta": "hm"},
        {"type": "response.output_item.done", "output_index": 0, "item": thought},
        {"type": "response.output_item.added", "output_index": 1, "item": {**called, "arguments": ""}},
        {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": '{"a": 1}'},
        {"type": "response.function_call_arguments.done", "output_index": 1, "arguments": '{"a": 1}'},
        {"type": "response.completed", "response": {"output": [thought, called]}},
    )
    assert reader.turns[0].content == 'hm\n\nf\n\n{"a": 1}' and reader.turns[0].calling


@pytest.mark.parametrize(
    ("reader", "item"),
    [
        ("Chat", chunk(audio={"data": "x"})),
        ("Messages", sse({"type": "another"})),
        ("Messages", sse({"type": "content_block_delta", "index": 0, "delta": {"type": "another_delta"}})),
        ("Messages", {"type": "message", "content": [{"type": "image"}]}),
        ("Responses", {"type": "response.image_generation_call.partial_image", "output_index": 0}),
        ("Responses", {"output": [{"type": "image_generation_call", "result": "x"}]}),
        ("Responses", {"output": [{"type": "message", "content": [{"type": "output_audio"}]}]}),
    ],
)
def test_an_answer_that_is_no_text_is_unreadable(reader, item):
    with pytest.raises(ROUTES.Unreadable, match=r"the answer has|only text can be scanned"):
        getattr(ROUTES, reader)().take(item)


def test_the_conversation_of_each_route():
    used = {"type": "tool_use", "name": "f", "input": {"a": 1}}
    result = {"type": "tool_result", "content": [{"type": "text", "text": "rain"}]}
    asked = {"role": "user", "content": [{"type": "text", "text": "q"}]}
    messages = {"system": [{"type": "text", "text": "be kind"}]}
    messages["messages"] = [asked, {"role": "assistant", "content": [used]}, {"role": "user", "content": [result]}]
    assert [each["content"] for each in ROUTES.Messages.conversation(messages)] == [
        "be kind",
        "q",
        'f\n\n{"a": 1}',
        "rain",
    ]
    items = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "input_text", "text": "q"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "function_call", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "output": "rain"},
    ]
    read = ROUTES.Responses.conversation({"instructions": "be kind", "input": items})
    assert [(each["role"], each["content"]) for each in read] == [
        ("system", "be kind"), ("system", "be brief"), ("user", "q"), ("assistant", "hm\n\nf\n\n{}"), ("tool", "rain"),
    ]  # fmt: skip
    chat = {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [
        {"function": {"name": "f", "arguments": "{}"}}
    ]}  # fmt: skip
    assert ROUTES.Chat.conversation({"messages": [chat]}) == [{"role": "assistant", "content": "hm\n\nf\n\n{}"}]


@pytest.mark.parametrize("field", ["previous_response_id", "conversation", "prompt", "background"])
def test_a_conversation_that_is_kept_elsewhere_is_unreadable(field):
    with pytest.raises(ROUTES.Unreadable, match="send the whole of it"):
        ROUTES.Responses.conversation({"input": "q", field: "x"})
