"""Write an answer as OpenAI's Responses API has it: a list of items, whole or as a stream of named events."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from anydepth.errors import BadRequest
from anydepth.server.answer.blocked import filter_results, refused_text
from anydepth.server.answer.compose import Delta, End
from anydepth.server.answer.toolcalls import ToolCall
from anydepth.server.http.chat import chat_ask
from anydepth.server.http.disconnect import ClosingStream, while_there
from anydepth.server.http.http_errors import describe
from anydepth.server.http.request_limits import answer_length, check_entries
from anydepth.server.http.responses_request import ResponsesRequest
from anydepth.server.http.sse import HEADERS, MEDIA_TYPE, sse
from anydepth.server.http.writing import after, blocked_instead, opening, report_of, usage_of
from anydepth.server.service import Ask, Piece, Service

Record = dict[str, Any]

_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why an answer ended -> why a response is incomplete."""

_PARTS = {
    "message": ("output_text", "text", "output_text"),
    "refusal": ("refusal", "refusal", "refusal"),
    "reasoning": ("reasoning_text", "text", "reasoning_text"),
}
"""Kind of text -> type of its part, the field that has it, and the name of its events."""


def _more(part_type: str) -> Record:
    """What a part and its events have besides."""
    return {"logprobs": []} if part_type == "output_text" else {}


async def respond_with_items(request: Request, body: ResponsesRequest, service: Service) -> Response:
    """Answer a request of the Responses API under guard; nothing is stored."""
    service.check_model(body.model)
    ask = await asyncio.to_thread(_ask, body, service, dict(request.headers))
    writer = ItemWriter(body, ask, service)
    pieces = service.run(ask)
    if not body.stream:
        return await while_there(request, _collect(ask, service, writer, pieces))
    # Before the headers: what cannot be done gets its own status.
    first = await while_there(request, opening(pieces, wait=service.waits_for_text))
    ends = {index: piece for index, piece in first if isinstance(piece, End)}
    if (error := blocked_instead(ask, service, ends)) is not None:
        await pieces.aclose()
        return error
    return ClosingStream(_stream(writer, pieces, first), pieces, media_type=MEDIA_TYPE, headers=HEADERS)


def _ask(body: ResponsesRequest, service: Service, headers: dict[str, str]) -> Ask:
    limits = service.settings.limits
    answer_length(limits, body.max_output_tokens, "max_output_tokens")
    if not isinstance(body.input, str):
        check_entries(limits, body.input, "input")
    try:
        return chat_ask(body.chat(), service, headers, endpoint="responses", id=f"resp_{uuid.uuid4().hex}")
    except BadRequest as error:
        raise BadRequest(_renamed(str(error)), _renamed(error.param or "") or None, error.code) from error


_NAMES = {
    "response_format.json_schema.schema": "text.format.schema",
    "response_format": "text.format",
    "tool_choice.function.name": "tool_choice.name",
    "].function.parameters": "].parameters",
}
"""Fields of a chat request -> what this API calls them."""


def _renamed(text: str) -> str:
    for name, own in _NAMES.items():
        text = text.replace(name, own)
    return text


async def _collect(ask: Ask, service: Service, writer: "ItemWriter", pieces: AsyncGenerator[Piece, None]) -> Response:
    ends: dict[int, End] = {}
    async with aclosing(pieces):
        async for index, piece in pieces:
            if isinstance(piece, End):
                ends[index] = piece
            for _ in writer.write(piece):
                pass
    if (error := blocked_instead(ask, service, ends)) is not None:
        return error
    return JSONResponse(writer.response)


async def _stream(
    writer: "ItemWriter", pieces: AsyncGenerator[Piece, None], first: Sequence[Piece]
) -> AsyncGenerator[bytes, None]:
    async with aclosing(pieces):
        for event in writer.begin():
            yield sse(event, event["type"])
        try:
            async for _, piece in after(first, pieces):
                for event in writer.write(piece):
                    yield sse(event, event["type"])
        except Exception as error:  # the headers have left: the error is an event of the stream
            event = writer.failed(describe(error)[1]["error"])
            yield sse(event, event["type"])


class ItemWriter:
    """Turns the pieces of one answer into the items of a response, and into the events that tell of them.

    Args:
        body: The request, parts of which stand in the response.
        ask: What it asks for.
        service: The server.

    Attributes:
        response: The response so far; whole after the last piece.
    """

    def __init__(self, body: ResponsesRequest, ask: Ask, service: Service) -> None:
        self._ask, self._number, self._open = ask, 0, False
        self.response: Record = {
            "id": ask.id,
            "object": "response",
            "created_at": ask.created,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": service.engine.facts.model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": {"format": _format(body)},
            "tool_choice": body.model_dump(include={"tool_choice"})["tool_choice"] or "auto",
            "tools": [each.model_dump(exclude_none=True) for each in body.tools or ()],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": None,
            "metadata": {},
        }

    def begin(self) -> Iterator[Record]:
        """The events before the first piece."""
        yield self._event("response.created", response={**self.response, "output": []})
        yield self._event("response.in_progress", response={**self.response, "output": []})

    def write(self, piece: Delta | End) -> Iterator[Record]:
        """The events that a piece adds, while the response grows by it."""
        if isinstance(piece, End):
            yield from self._end(piece)
            return
        if piece.reasoning:
            yield from self._add("reasoning", piece.reasoning)
        if piece.content:
            yield from self._add("message", piece.content)
        for call in piece.calls:
            yield from self._call(call)

    def failed(self, error: Record) -> Record:
        """The event in place of the rest: what went wrong."""
        told = {"code": error["code"], "message": error["message"], "param": error["param"]}
        return self._event("error", **told)

    def _end(self, end: End) -> Iterator[Record]:
        output: list[Record] = self.response["output"]
        reason = _REASONS.get(end.finish_reason)
        status = "completed" if reason is None else "incomplete"
        if end.refusal and end.structured:
            yield from self._add("refusal", end.refusal)
        elif end.refusal:
            yield from self._add("message", refused_text(end.refusal, wrote=end.wrote))
        elif not any(item["type"] in ("message", "function_call") for item in output):
            yield from self._open_item("message")
        yield from self._close(status)
        usage = usage_of(self._ask, {0: end})
        self.response |= {
            "status": status,
            "incomplete_details": None if reason is None else {"reason": reason},
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
            "anydepth": report_of(self._ask, 0, end, tell=self._ask.tell_checks).record(),
        }
        if end.answer.halted:
            self.response["content_filter_results"] = filter_results()
        yield self._event(f"response.{status}", response=self.response)

    def _add(self, kind: str, text: str) -> Iterator[Record]:
        part_type, field, events = _PARTS[kind]
        if not self._open or self._part["type"] != part_type:
            yield from self._open_item(kind)
        self._part[field] += text
        yield self._event(f"response.{events}.delta", **self._place, content_index=0, delta=text, **_more(part_type))

    def _open_item(self, kind: str) -> Iterator[Record]:
        yield from self._close("completed")
        part_type, field, _ = _PARTS[kind]
        item: Record = {"status": "in_progress", "content": []}
        if kind == "reasoning":
            item |= {"type": "reasoning", "id": _id("rs"), "summary": []}
        else:
            item |= {"type": "message", "id": _id("msg"), "role": "assistant"}
        part: Record = {"type": part_type, field: "", **({"annotations": []} if kind == "message" else {})}
        part |= _more(part_type)
        self.response["output"].append(item)
        self._open = True
        yield self._event("response.output_item.added", output_index=self._index, item={**item, "content": []})
        item["content"] = [part]
        yield self._event("response.content_part.added", **self._place, content_index=0, part=dict(part))

    def _close(self, status: str) -> Iterator[Record]:
        """End the item that is being written, if one is."""
        if not self._open:
            return
        self._open, part = False, self._part
        field, events = next((field, events) for kind, field, events in _PARTS.values() if kind == part["type"])
        told: Record = {field: part[field], **_more(part["type"])}
        self._item["status"] = status
        yield self._event(f"response.{events}.done", **self._place, content_index=0, **told)
        yield self._event("response.content_part.done", **self._place, content_index=0, part=part)
        yield self._event("response.output_item.done", output_index=self._index, item=self._item)

    def _call(self, call: ToolCall) -> Iterator[Record]:
        yield from self._close("completed")
        item = {"type": "function_call", "id": _id("fc"), "call_id": _id("call"), "name": call.name}
        begun = {**item, "arguments": "", "status": "in_progress"}
        self.response["output"].append(item := {**item, "arguments": call.arguments, "status": "completed"})
        yield self._event("response.output_item.added", output_index=self._index, item=begun)
        arguments = call.arguments
        yield self._event("response.function_call_arguments.delta", **self._place, delta=arguments)
        yield self._event("response.function_call_arguments.done", **self._place, name=call.name, arguments=arguments)
        yield self._event("response.output_item.done", output_index=self._index, item=item)

    @property
    def _item(self) -> Record:
        return self.response["output"][-1]

    @property
    def _part(self) -> Record:
        return self._item["content"][0]

    @property
    def _index(self) -> int:
        return len(self.response["output"]) - 1

    @property
    def _place(self) -> Record:
        return {"item_id": self._item["id"], "output_index": self._index}

    def _event(self, kind: str, **told: Any) -> Record:
        number, self._number = self._number, self._number + 1
        return {"type": kind, "sequence_number": number, **told}


def _format(body: ResponsesRequest) -> Record:
    """The form of the answer, as the request has it."""
    form = None if body.text is None else body.text.format
    return {"type": "text"} if form is None else form.model_dump(exclude_none=True, by_alias=True)


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex[:24]}"
