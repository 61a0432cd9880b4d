"""The requests that the server reads."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Strict, Tag, field_validator, model_validator

from anydepth.guard_overrides import GuardOverrides
from anydepth.server.http.body_errors import unreadable

_HARMLESS = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls",
}  # fmt: skip
"""Fields of OpenAI's that change nothing here."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "functions": ([],),
    "truncation": ("disabled",),
    "include": ([],),
    "background": (False,),
}
"""Fields that are not offered -> values by which a client asks for nothing."""


def _kind(value: Any) -> str | None:
    """Which alternative of a field a value is meant to be: a complaint is then about that one."""
    if isinstance(value, (str, list)):
        return "<text>" if isinstance(value, str) else "<list>"
    if isinstance(value, (dict, BaseModel)):
        role = "role" in value if isinstance(value, dict) else hasattr(value, "role")
        return "<message>" if role else "<part>"
    return None


def by_kind(remedy: str) -> Discriminator:
    """Chooses the alternative of a field that a value is meant to be; `remedy` says what to send instead of others."""
    return Discriminator(_kind, custom_error_type="wrong_kind", custom_error_message=remedy)


_TEXTS = by_kind("send a text, or a list of texts")
Text = Annotated[str, Tag("<text>")]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Flag = Annotated[bool, Strict()]
"""`true` or `false`: a text or number that could stand for one is an error, and neither is a number."""
Seed = Annotated[int, Strict(), Field(ge=-(2**63), lt=2**63)]


class RequestBody(BaseModel):
    """A body. Fields that are not offered are an error, by name, unless they ask for nothing."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    anydepth: GuardOverrides | None = None

    @property
    def tells_checks(self) -> bool:
        """Whether the client asks to see every check."""
        return self.anydepth is not None and self.anydepth.checks

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as error:
            raise ValueError(str(unreadable(error))) from None
        return {
            name: value
            for name, value in body.items()
            if name in cls.model_fields
            or not (name in _HARMLESS or value is None or any(value == each for each in _NEUTRAL.get(name, ())))
        }


class TextPart(BaseModel):
    """A part of a message; others than text are refused."""

    type: Literal["text"]
    text: str


Content = Annotated[
    Text | Annotated[list[TextPart], Tag("<list>")], by_kind("send a text, or a list of parts of type text")
]


class FunctionCall(BaseModel):
    """What an assistant called; arguments are the JSON text of an object, and an empty text is none."""

    name: str
    arguments: str = "{}"


class PastToolCall(BaseModel):
    """A tool call in the conversation so far."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(BaseModel):
    """A message of the conversation; fields that are not known are left out."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[PastToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Function(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="forbid")

    include_usage: Flag = False
    include_obfuscation: Flag = False


class _Generation(RequestBody):
    """What chat and plain completions have in common."""

    model: str
    stream: Flag | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Strict(), Field(ge=1)] | None = 1
    max_tokens: Annotated[int, Strict(), Field(ge=1)] | None = None
    temperature: Annotated[float, Strict(), Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Strict(), Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Strict(), Field(ge=-1)] | None = None
    min_p: Annotated[float, Strict(), Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Strict(), Field(ge=0.1, le=10)] | None = None
    seed: Seed | None = None
    stop: (
        Annotated[Annotated[Stop, Tag("<text>")] | Annotated[list[Stop], Field(max_length=4), Tag("<list>")], _TEXTS]
        | None
    ) = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @field_validator("stream_options")
    @classmethod
    def _of_a_stream(cls, value: StreamOptions | None, info: Any) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("it is for streams: set stream, or leave it out")
        return value


class JsonSchema(BaseModel):
    """A JSON Schema that an answer has to keep."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    name: str | None = None
    description: str | None = None
    rules: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: Flag | None = None


class ResponseFormat(BaseModel):
    """Of which form an answer has to be."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Annotated[JsonSchema | None, Field(validate_default=True)] = None

    @field_validator("json_schema")
    @classmethod
    def _goes_with_its_type(cls, value: JsonSchema | None, info: Any) -> JsonSchema | None:
        kind = info.data.get("type")
        if kind == "json_schema" and value is None:
            raise ValueError("send the schema, or another type")
        if kind in ("text", "json_object") and value is not None:
            raise ValueError("it goes with type json_schema: send that, or leave it out")
        return value

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON Schema of the answer; None for text."""
        if self.type == "text":
            return None
        given = self.json_schema.rules if self.json_schema is not None else None
        return {"type": "object"} if given is None else given


class NamedFunction(BaseModel):
    """The name of a function."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=256)]


class NamedTool(BaseModel):
    """The one tool that has to be called."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("<text>")] | Annotated[NamedTool, Tag("<part>")],
    by_kind("choose 'auto', 'none' or 'required', or send an object that names a function"),
]


class ChatRequest(_Generation):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Strict(), Field(ge=1)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: Flag | None = None
    add_generation_prompt: Flag | None = None
    continue_final_message: Flag | None = None
    response_format: ResponseFormat | None = None

    @property
    def offered(self) -> list[Tool]:
        """The tools that the answer may call."""
        return [] if self.tool_choice == "none" else self.tools or []


class ProposedFunction(BaseModel):
    """The function that an agent is about to call; arguments are the JSON text of an object.

    They must be there: a call whose arguments have another name would be judged without them.
    """

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str


class ProposedToolCall(BaseModel):
    """A tool call before it is run."""

    model_config = ConfigDict(extra="forbid")

    id: str | None = None
    index: int | None = None
    type: Literal["function"] = "function"
    function: ProposedFunction


class GateRequest(RequestBody):
    """`POST /v1/gate`: whether the tool call that the assistant proposes may be run."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    tool_call: ProposedToolCall
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    control: Flag = True
    model: str | None = None


class CompletionRequest(_Generation):
    """`POST /v1/completions`: a prompt as it is, without the chat template."""

    prompt: Annotated[Text | Annotated[list[str], Field(min_length=1), Tag("<list>")], _TEXTS]


class ScanMessage(BaseModel):
    """A message of a conversation to scan."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: Content


Scanned = Annotated[
    Text | Annotated[ScanMessage, Tag("<message>")] | Annotated[TextPart, Tag("<part>")],
    by_kind("send a text, a message or a part of type text"),
]


class ModerationRequest(RequestBody):
    """`POST /v1/moderations`: a text is a user's message; a list of messages is a conversation."""

    input: Annotated[
        Text | Annotated[list[Scanned], Field(min_length=1), Tag("<list>")],
        by_kind("send a text, a list of texts, or a list of messages"),
    ]
    model: str | None = None
