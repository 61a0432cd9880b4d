"""Read a request of OpenAI's Responses API as the chat request that it stands for."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Strict, Tag, model_validator

from anydepth.errors import BadRequest
from anydepth.server.http.requests import (
    ChatMessage,
    ChatRequest,
    Flag,
    Function,
    FunctionCall,
    JsonSchema,
    NamedFunction,
    NamedTool,
    PastToolCall,
    RequestBody,
    ResponseFormat,
    StreamOptions,
    Text,
    Tool,
    by_kind,
)


class TextItem(BaseModel):
    """A part of a message: a text, whoever wrote it, or a refusal."""

    type: Literal["input_text", "output_text", "text", "refusal"]
    text: str = ""
    refusal: str = ""


Texts = Annotated[
    Text | Annotated[list[TextItem], Tag("<list>")], by_kind("send a text, or a list of parts of type input_text")
]


class MessageItem(BaseModel):
    """A message of the conversation; fields that are not known are left out."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Texts


class CallItem(BaseModel):
    """A function that the model called."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class CallOutputItem(BaseModel):
    """What a called function gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: Texts


class ReasoningItem(BaseModel):
    """Thoughts of an earlier answer; the model does not get them again."""

    type: Literal["reasoning"]


_ITEMS = ("message", "function_call", "function_call_output", "reasoning")


def _kind(value: Any) -> str | None:
    """Which alternative of an item a value is meant to be: clients leave the type of a message out."""
    kind = value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if kind in _ITEMS else None


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[CallItem, Tag("<function_call>")]
    | Annotated[CallOutputItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    Discriminator(
        _kind,
        custom_error_type="wrong_item",
        custom_error_message=f"send items of the types {', '.join(_ITEMS)}",
    ),
]


class ItemFormat(BaseModel):
    """Of which form the text of an answer has to be."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    rules: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: Flag | None = None

    @model_validator(mode="after")
    def _goes_with_its_type(self) -> "ItemFormat":
        if (self.type == "json_schema") != (self.rules is not None):
            raise ValueError("a schema goes with type json_schema: send both, or neither")
        return self


class TextOptions(BaseModel):
    """How the text of an answer is written."""

    model_config = ConfigDict(extra="forbid")

    format: ItemFormat | None = None


class ChosenTool(BaseModel):
    """The one function that has to be called."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=256)]


class FunctionTool(BaseModel):
    """A function that the model may call; other tools run at OpenAI and are refused."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ResponsesRequest(RequestBody):
    """`POST /v1/responses`, without what a server would have to remember."""

    model: str
    input: Annotated[
        Text | Annotated[list[Item], Field(min_length=1), Tag("<list>")], by_kind("send a text, or a list of items")
    ]
    instructions: str | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: (
        Annotated[
            Annotated[Literal["auto", "none", "required"], Tag("<text>")] | Annotated[ChosenTool, Tag("<part>")],
            by_kind("choose 'auto', 'none' or 'required', or send an object that names a function"),
        ]
        | None
    ) = None
    text: TextOptions | None = None
    parallel_tool_calls: Flag | None = None
    max_output_tokens: Annotated[int, Strict(), Field(ge=1)] | None = None
    temperature: Annotated[float, Strict(), Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Strict(), Field(ge=0, le=1)] | None = None
    stream: Flag | None = False
    stream_options: StreamOptions | None = None
    # Clients that keep the conversation themselves ask for encrypted thoughts, as there are at OpenAI; here are none.
    include: list[Literal["reasoning.encrypted_content"]] | None = None

    def chat(self) -> ChatRequest:
        """The chat request that asks for the same.

        Raises:
            BadRequest: There is nothing to answer, or a call's output stands for no call.
        """
        offered = (Function(**each.model_dump(exclude={"type"})) for each in self.tools or ())
        tools = [Tool(type="function", function=each) for each in offered]
        return ChatRequest.model_construct(  # every part has been validated
            model=self.model,
            messages=self._messages(),
            tools=tools or None,
            tool_choice=self._choice(),
            response_format=self._form(),
            parallel_tool_calls=self.parallel_tool_calls,
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stream=self.stream,
            anydepth=self.anydepth,
        )

    def _choice(self) -> Any:
        if isinstance(self.tool_choice, ChosenTool):
            return NamedTool(type="function", function=NamedFunction(name=self.tool_choice.name))
        return self.tool_choice

    def _form(self) -> ResponseFormat | None:
        form = None if self.text is None else self.text.format
        if form is None:
            return None
        schema = None if form.rules is None else JsonSchema(name=form.name, rules=form.rules)
        return ResponseFormat(type=form.type, json_schema=schema)

    def _messages(self) -> list[ChatMessage]:
        found = [] if self.instructions is None else [ChatMessage(role="system", content=self.instructions)]
        if isinstance(self.input, str):
            return [*found, ChatMessage(role="user", content=self.input)]
        called = set[str]()
        for place, item in enumerate(self.input):
            if isinstance(item, MessageItem):
                found.append(ChatMessage(role=item.role, content=_text(item.content)))
            elif isinstance(item, CallItem):
                called.add(item.call_id)
                _add_call(found, item)
            elif isinstance(item, CallOutputItem):
                if item.call_id not in called:
                    name = f"input[{place}].call_id"
                    raise BadRequest(
                        f"{name} is {item.call_id!r}, and no function_call before it has this id; send the whole "
                        "conversation, since this server keeps none",
                        name,
                    )
                found.append(ChatMessage(role="tool", content=_text(item.output), tool_call_id=item.call_id))
        if not any(message.role != "system" for message in found):
            raise BadRequest("input has no message to answer; append one of the user", "input", "invalid_prompt")
        return found


def _text(content: str | list[TextItem]) -> str:
    return content if isinstance(content, str) else "".join(part.text or part.refusal for part in content)


def _add_call(messages: list[ChatMessage], item: CallItem) -> None:
    """Add a call to the assistant's message that stands last, or as a message of its own."""
    call = PastToolCall(id=item.call_id, function=FunctionCall(name=item.name, arguments=item.arguments))
    if messages and messages[-1].role == "assistant":
        messages[-1].tool_calls = [*(messages[-1].tool_calls or ()), call]
    else:
        messages.append(ChatMessage(role="assistant", tool_calls=[call]))
