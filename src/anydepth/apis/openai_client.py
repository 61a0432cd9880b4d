"""Ask an OpenAI-compatible endpoint, chat or completions, through the `openai` client."""

import contextlib
from collections.abc import Mapping
from typing import Any, Literal

from anydepth.apis.provider import ApiReply, ApiRequest, ChatTurn, Ended, Streamed, ended_by, no_tools
from anydepth.apis.token_texts import told_tokens
from anydepth.errors import ConfigError, ProviderError
from anydepth.extras import require
from anydepth.prices import TokenCount
from anydepth.provider_errors import told_as_ours

_WORDS: Mapping[str, Literal["stop", "length", "refused"]] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "refused",
}
_LIMITS = ("max_tokens", "max_completion_tokens")
_OWN_HOST = "api.openai.com"  # refuses max_tokens for models that think


class OpenAIClient:
    """Implements `Provider` over `openai.OpenAI` or a subclass of it.

    Args:
        client: The client; its retries, time limits and keys are its own.
        model: Name of the model.
        limit_field: The field that limits a reply, `max_tokens` or `max_completion_tokens`. None is the second one for
            OpenAI's own host, the first one for others.
        stream_usage: Whether streams are asked for their usage (`stream_options`), which some servers do not take.
    """

    name = "openai"
    options = frozenset({"temperature", "top_p", "stop", "frequency_penalty", "presence_penalty"})
    seed: str | None = "seed"
    greedy = True
    tells_tokens = True

    def __init__(self, client: Any, model: str, *, limit_field: str | None = None, stream_usage: bool = True) -> None:
        if limit_field not in (None, *_LIMITS):
            raise ConfigError(f"limit_field is {limit_field!r}; choose {' or '.join(_LIMITS)}")
        self._sdk = require("openai", extra="apis", at_least=(2, 0))
        self._client, self._model = client, model
        self.host = str(client.base_url.host)
        self._limit = limit_field or _LIMITS[self.host == _OWN_HOST]
        self._streaming = {"stream_options": {"include_usage": True}} if stream_usage else {}
        self._who = f"{model} at {self.host}"

    def closes(self) -> bool:
        """True of vLLM, by what it says of its models; see `Provider.closes`."""
        try:
            return any(model.owned_by == "vllm" for model in self._client.models.list())
        except Exception:  # an endpoint without such a list
            return False

    def require_turns(self, turns: tuple[ChatTurn, ...]) -> None:
        """Every conversation of texts is taken."""

    def stream(self, ask: ApiRequest) -> Streamed:
        """Stream the reply; see `Provider.stream`."""
        word, refusal, count = None, "", None
        with told_as_ours(self._who, self._sdk):
            chunks = self._create(ask, stream=True, **self._streaming)
            with contextlib.closing(chunks), ask.handle.streaming(chunks.response):
                for chunk in chunks:
                    count = _count(chunk) or count
                    for choice in chunk.choices or ():
                        part = choice if ask.ids is not None else choice.delta
                        self._without_tools(part)
                        refusal += getattr(part, "refusal", None) or ""
                        word = choice.finish_reason or word
                        if text := _text(part):
                            yield text
        if count is not None:
            yield count
        yield self._ended(word, refusal)

    def reply(self, ask: ApiRequest) -> ApiReply:
        """Ask for a whole reply; see `Provider.reply`."""
        with told_as_ours(self._who, self._sdk):
            found = self._create(ask)
        if not getattr(found, "choices", None):
            raise ProviderError(f"{self._who} replied without a choice; is this an endpoint of OpenAI's form?")
        choice = found.choices[0]
        part = choice if ask.ids is not None else choice.message
        self._without_tools(part)
        ended = self._ended(choice.finish_reason, getattr(part, "refusal", None) or "")
        return ApiReply(_text(part), ended, _count(found), told_tokens(choice) if ask.top_logprobs else None)

    def _create(self, ask: ApiRequest, **streaming: Any) -> Any:
        fields = {"model": self._model, self._limit: ask.max_tokens, **ask.options, **streaming}
        if ask.ids is not None:
            fields["max_tokens"] = fields.pop(self._limit)  # the only name that completions have for it
            fields |= {"logprobs": ask.top_logprobs} if ask.top_logprobs else {}
            return self._client.completions.create(prompt=list(ask.ids), **fields)
        fields |= {"logprobs": True, "top_logprobs": ask.top_logprobs} if ask.top_logprobs else {}
        messages = [{"role": turn.role, "content": turn.text} for turn in ask.turns]
        return self._client.chat.completions.create(messages=messages, **fields)

    def _ended(self, word: str | None, refusal: str) -> Ended:
        return Ended("refused", f"refusal: {refusal}") if refusal else ended_by(_WORDS, word, self._who)

    def _without_tools(self, part: Any) -> None:
        for kind in ("tool_calls", "function_call"):
            if getattr(part, kind, None):
                raise no_tools(kind, self._who)


def _text(part: Any) -> str:
    """The text of a delta, a message or a choice of completions; thoughts beside it are no part of the answer."""
    text = getattr(part, "content", None) or getattr(part, "text", None) or ""
    if not isinstance(text, str):
        raise ProviderError(f"the content of a reply is a {type(text).__name__}; only text can be guarded")
    return text


def _count(found: Any) -> TokenCount | None:
    usage = getattr(found, "usage", None)
    return None if usage is None else TokenCount(usage.prompt_tokens or 0, usage.completion_tokens or 0)
