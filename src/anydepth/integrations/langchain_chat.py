"""A LangChain chat model over a guard in this process: `ChatAnydepth(guard=guard)`."""

# ruff: noqa: E402 - a missing package gives the error of anydepth.extras, before its own imports

import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any

from anydepth.errors import ConfigError, PromptError
from anydepth.extras import require
from anydepth.guard import Guard
from anydepth.guard_report import GuardReport
from anydepth.integrations.answering import Answering, Pieces, apieces
from anydepth.policy import policy_record
from anydepth.server.answer.blocked import refused_text
from anydepth.server.answer.compose import Delta, End
from anydepth.server.answer.usage import token_counts
from anydepth.types import Message

require("langchain_core", extra="langchain", at_least=(1, 8))

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel, agenerate_from_stream, generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, PrivateAttr

_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}
_CALLS = ("tool_use", "tool_call", "function_call")  # parts of a content that repeat the message's tool calls


class ChatAnydepth(BaseChatModel):
    """A chat model whose answers are guarded while they are written; a last message of the assistant is a prefill.

    A message has `response_metadata["finish_reason"]`, which is `content_filter` for a blocked answer, and the guard's
    report in `response_metadata["anydepth"]`. Thoughts are in `additional_kwargs["reasoning_content"]`. Tool calls
    leave once their answer has ended unhalted. Requests take turns at the model; make one `ChatAnydepth` for a guard.

    Attributes:
        guard: The guard.
        max_new_tokens: Tokens of an answer at most; an argument `max_tokens` of a call takes its place.
        generation: Options of `Guard.stream` for every answer: `temperature`, `do_sample`, `seed`, ...
        tool_format: How the model writes calls: a row of `data/toolcalls.toml`, `auto` or `none`.
        cache: False unless set: LangChain's global cache would hand out answers that another guard has let pass.

    Raises:
        ConfigError: A call asks for what cannot be done here: a forced `tool_choice`, an unknown option, tools without
            a known format of calls.
        PromptError: The messages are malformed, or have a part that is no text.
    """

    guard: Guard = Field(exclude=True, repr=False)
    max_new_tokens: int = 512
    generation: Mapping[str, Any] = Field(default_factory=dict)
    tool_format: str = "auto"
    cache: Any = False

    _answering: Answering | None = PrivateAttr(default=None)

    @property
    def _llm_type(self) -> str:
        return "anydepth"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        config, backend = self.guard.config, self.guard.backend
        return {
            "model": backend.identity.name,
            "fingerprint": backend.identity.fingerprint,
            "detector": self.guard.detector.name,
            "policy": policy_record(config.policy),
            "release": config.release,
            "on_error": config.on_error,
            "max_new_tokens": self.max_new_tokens,
            **self.generation,
        }

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: Any = None, **options: Any) -> Any:
        """Offer tools: functions, LangChain's tools, pydantic models or OpenAI's descriptions.

        Args:
            tools: The tools.
            tool_choice: None or `auto`; nothing in this process makes the model call one.
            **options: Other arguments of each call.
        """
        _check_choice(tool_choice)
        _ = self._asking().calls  # a template without a known format is an error here, not at the first call
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], tool_choice=tool_choice, **options)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, **kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await agenerate_from_stream(self._astream(messages, stop, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with closing(self._pieces(messages, stop, kwargs)) as pieces:
            for chunk in map(self._chunk, pieces):
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with aclosing(apieces(self._pieces(messages, stop, kwargs))) as pieces:
            async for chunk in (self._chunk(piece) async for piece in pieces):
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _pieces(self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, kwargs: Any) -> Pieces:
        options = {"max_new_tokens": self.max_new_tokens, **self.generation, **kwargs}
        _check_choice(options.pop("tool_choice", None))
        tools = options.pop("tools", None) or ()
        if (length := options.pop("max_tokens", None)) is not None:  # LangChain's name
            options["max_new_tokens"] = length
        said = [_message(message) for message in messages]
        return self._asking().pieces(said, tools=tools, stops=tuple(stop or ()), **options)

    def _asking(self) -> Answering:
        if self._answering is None:
            self._answering = Answering(self.guard, self.tool_format)
        return self._answering

    def _chunk(self, piece: Delta | End) -> ChatGenerationChunk:
        if isinstance(piece, End):
            return self._last(piece)
        calls = [
            tool_call_chunk(name=call.name, args=call.arguments, id=f"call_{uuid.uuid4().hex[:24]}", index=index)
            for index, call in enumerate(piece.calls)
        ]
        thoughts = {"reasoning_content": piece.reasoning} if piece.reasoning else {}
        message = AIMessageChunk(content=piece.content, tool_call_chunks=calls, additional_kwargs=thoughts)
        return ChatGenerationChunk(message=message)

    def _last(self, end: End) -> ChatGenerationChunk:
        read, written = token_counts(end.answer)
        metadata = {
            "finish_reason": end.finish_reason,
            "model_name": self.guard.backend.identity.name,
            "anydepth": GuardReport.of(end.answer, self.guard.config).record(),
        }
        message = AIMessageChunk(
            content=refused_text(end.refusal, wrote=end.wrote) if end.refusal else "",
            response_metadata=metadata,
            usage_metadata=UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written),
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message)


def _check_choice(choice: Any) -> None:
    if choice not in (None, "auto"):
        raise ConfigError(
            f"tool_choice is {choice!r}; a guard in this process offers tools and forces none: leave it out, or ask "
            "`anydepth serve` through langchain-openai"
        )


def _message(message: BaseMessage) -> Message:
    """A message as chat templates read it; the template itself refuses parts that are no text."""
    role = message.role if isinstance(message, ChatMessage) else _ROLES.get(message.type)
    if role is None:
        raise PromptError(f"a message is of type {message.type!r}; send those of {', '.join(_ROLES)}")
    content: Any = message.content
    if isinstance(content, list):
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        content = [part for part in parts if part.get("type") not in _CALLS]
    record: dict[str, Any] = {"role": role, "content": content}
    if isinstance(message, ToolMessage):
        record["tool_call_id"] = message.tool_call_id
    if isinstance(message, AIMessage) and message.tool_calls:
        record["tool_calls"] = [
            {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["args"]}}
            for call in message.tool_calls
        ]
    return record
