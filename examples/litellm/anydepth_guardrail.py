"""A LiteLLM guardrail that lets an anydepth server read every conversation.

    pre_call    the request, the beginning of an answer that a client wrote included, before a model is called
    post_call   the finished conversation, all depths in one pass, before the answer is sent;
                a stream is held back and leaves window by window, each once a scan covers it

Three routes: /v1/chat/completions, /v1/messages and /v1/responses. What cannot be scanned does not pass: the server is
down, a part is an image, the route is another one. The hooks are LiteLLM's native ones: `apply_guardrail` is not given
a model's thoughts, and is not called at all for an answer that has nothing else.
"""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
from litellm._logging import verbose_proxy_logger
from litellm.exceptions import GuardrailRaisedException
from litellm.integrations.custom_guardrail import CustomGuardrail, log_guardrail_information
from litellm.types.guardrails import GuardrailEventHooks
from litellm.types.llms.openai import ResponsesAPIResponse
from litellm.types.utils import EmbeddingResponse, ModelResponse, ModelResponseStream, RerankResponse

sys.path.append(str(Path(__file__).parent))  # LiteLLM imports this file by its path, and nothing beside it

from anydepth_routes import ROUTES, Chat, Message, Messages, Reader, Responses, Unreadable

NO_ANSWER = frozenset({"embedding", "aembedding", "rerank", "arerank", "moderation", "amoderation"})
"""Calls without an answer to read; others than these and the three routes are refused: nobody would check them."""


class AnydepthGuardrail(CustomGuardrail):
    """Blocks what `POST /v1/moderations` of an anydepth server flags.

    Args:
        api_base: The server, with `/v1`; default: the environment's ANYDEPTH_API_BASE, else http://127.0.0.1:8000/v1.
        api_key: Its key; default: the environment's ANYDEPTH_API_KEY.
        window_chars: A stream is scanned and released each time this many characters have come; 0 scans it once, whole.
        timeout: Seconds for one scan.
        unreachable_fallback: `fail_open` lets pass what could not be scanned because the server is down or busy.
        kwargs: LiteLLM's own.
    """

    def __init__(
        self,
        *,
        api_base: str | None = None,
        api_key: str | None = None,
        window_chars: int = 400,
        timeout: float | None = None,
        unreachable_fallback: str = "fail_closed",
        **kwargs: Any,
    ) -> None:
        kwargs["supported_event_hooks"] = [GuardrailEventHooks.pre_call, GuardrailEventHooks.post_call]
        super().__init__(**kwargs)
        if unreachable_fallback not in ("fail_closed", "fail_open"):
            raise ValueError(f"unreachable_fallback is {unreachable_fallback!r}; choose fail_closed or fail_open")
        self._window, self._open = int(window_chars), unreachable_fallback == "fail_open"
        base = api_base or os.environ.get("ANYDEPTH_API_BASE") or "http://127.0.0.1:8000/v1"
        key = api_key or os.environ.get("ANYDEPTH_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._server = httpx.AsyncClient(base_url=base, headers=headers, timeout=timeout or 30)

    @log_guardrail_information
    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any]:
        """Scan the conversation so far."""
        if call_type in NO_ANSWER:
            return data
        if call_type not in ROUTES:
            raise self._refusal(f"this guardrail does not read the route of {call_type}")
        await self._scan(self._read(ROUTES[call_type].conversation, data))
        return data

    @log_guardrail_information
    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> Any:
        """Scan the conversation with each answer."""
        if isinstance(response, EmbeddingResponse | RerankResponse):
            return response
        reader = self._reader(response)
        self._read(reader.take, response)
        await self._scan_turns(self._read(reader.conversation, data), reader)
        return response

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: AsyncIterator[Any], request_data: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """Hold chunks back until a scan covers them; from the first tool call on, until the end of the answer."""
        reader, conversation, held, grown = None, list[Message](), list[Any](), 0
        async for chunk in response:
            if reader is None:
                reader = self._reader(chunk)
                conversation = self._read(reader.conversation, request_data)
            held.append(chunk)
            grown += self._read(reader.take, chunk)
            calling = any(turn.calling for turn in reader.turns.values())
            if self._window and grown >= self._window and not calling and not reader.unread:
                await self._scan_turns(conversation, reader)
                for each in held:
                    yield each
                held, grown = [], 0
        if reader is None:
            return
        if reader.unread:
            raise self._refusal("the stream ended within an event")
        await self._scan_turns(conversation, reader)
        for each in held:
            yield each

    def _reader(self, answer: Any) -> Reader:
        """Who reads an answer, or a stream that begins like this; a refusal if nobody can."""
        if isinstance(answer, ModelResponse | ModelResponseStream):
            return Chat()
        if isinstance(answer, bytes | str) or (isinstance(answer, dict) and answer.get("type") == "message"):
            return Messages()
        if isinstance(answer, ResponsesAPIResponse) or str(_kind(answer)).startswith("response."):
            return Responses()
        raise self._refusal(f"this guardrail does not read a {type(answer).__name__}")

    def _read(self, read: Callable[[Any], Any], what: Any) -> Any:
        """What `read` makes of it; a refusal if it cannot be read."""
        try:
            return read(what)
        except Unreadable as error:
            raise self._refusal(str(error)) from None
        except (AttributeError, KeyError, TypeError, ValueError, StopIteration) as error:
            raise self._refusal("the conversation is malformed") from error

    async def _scan_turns(self, conversation: Sequence[Message], reader: Reader) -> None:
        await asyncio.gather(*(self._scan(_with_answer(conversation, turn.content)) for turn in reader.turns.values()))

    async def _scan(self, conversation: Sequence[Message]) -> None:
        """Raise unless the server says that the conversation is fine."""
        try:
            reply = await self._server.post("/moderations", json={"input": list(conversation)})
            if reply.status_code == 429 or reply.status_code >= 500:
                raise httpx.HTTPStatusError(f"status {reply.status_code}", request=reply.request, response=reply)
        except httpx.HTTPError as error:
            if self._open:
                verbose_proxy_logger.critical("anydepth: not scanned, and let pass (fail_open): %r", error)
                return
            verbose_proxy_logger.error("anydepth: not scanned: %r", error)
            raise self._refusal("the guard cannot be reached", status_code=503) from error
        if reply.status_code != 200:  # 400: something in it is no text; 401: the key; 413: too long
            verbose_proxy_logger.error("anydepth: not scanned: %s", reply.text)
            raise self._refusal("the conversation cannot be scanned", status_code=400)
        try:
            (result,) = reply.json()["results"]
            fine = result["flagged"] is False
        except (ValueError, KeyError, TypeError) as error:
            raise self._refusal("the guard's answer cannot be read", status_code=503) from error
        if not fine:  # depth and score are for the log: they would help whoever probes the guard
            verbose_proxy_logger.warning("anydepth: flagged: %s", result.get("anydepth"))
            raise self._refusal("the conversation was flagged as harmful", blocked_content=True)

    def _refusal(
        self, message: str, *, status_code: int = 400, blocked_content: bool = False
    ) -> GuardrailRaisedException:
        return GuardrailRaisedException(
            guardrail_name=self.guardrail_name,
            message=f"anydepth: {message}",
            should_wrap_with_default_message=False,
            status_code=status_code,
            blocked_content=blocked_content,
        )


def _kind(answer: Any) -> Any:
    kind = answer.get("type") if isinstance(answer, dict) else getattr(answer, "type", None)
    return getattr(kind, "value", kind)


def _with_answer(conversation: Sequence[Message], answer: str) -> list[Message]:
    """The conversation with the answer; where the client wrote its beginning, the two are one message."""
    if not conversation or conversation[-1]["role"] != "assistant":
        return [*conversation, {"role": "assistant", "content": answer}]
    *before, last = conversation
    return [*before, {"role": "assistant", "content": last["content"] + answer}]
