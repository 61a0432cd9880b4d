"""Stand in for a chat template where a provider keeps its own."""

from collections.abc import Sequence
from typing import Any

from anydepth.apis.api_backend import ApiBackend
from anydepth.apis.text_pieces import ConversationTemplate, text_of
from anydepth.errors import BadRequest
from anydepth.templates.prompt import Prompt


class UpstreamTemplate:
    """What the server asks of a `ChatTemplate`, for a model behind an API: prompts, and texts of pieces.

    Attributes:
        channel: None: thoughts do not leave the provider's client.
        header: None: the Safety Tokens are the provider's own.
        tokenizer: Gives the text of pieces, and makes a prompt of a plain text.

    Args:
        backend: The backend.
    """

    channel = None
    header = None

    def __init__(self, backend: ApiBackend) -> None:
        self._prompts = ConversationTemplate()
        self.tokenizer = _Texts(self._prompts, raw=backend.capability == "raw")

    def prompt(self, messages: str | Sequence[Any], *, tools: Sequence[Any] | None = None) -> Prompt:
        """The prompt for `messages`; see `ConversationTemplate.prompt`. BadRequest if there are tools."""
        if tools:
            raise BadRequest(
                "tools cannot be guarded over an API, since a look-ahead does not judge calls; leave tools out",
                "tools",
                "unsupported",
            )
        return self._prompts.prompt(messages)

    def call_prompt(self, messages: Any, tool_call: Any, **_: Any) -> Any:
        """Refuse to write a proposed tool call; BadRequest."""
        raise ungated()


def ungated() -> BadRequest:
    """Why a proxy gates no tool calls."""
    return BadRequest(
        "tool calls cannot be gated over an API, since a look-ahead does not judge calls; ask a server that loads its "
        "model (`anydepth serve`)",
        "tool_call",
        "unsupported",
    )


class _Texts:
    """The part of a tokenizer that the server uses."""

    chat_template = None

    def __init__(self, prompts: ConversationTemplate, *, raw: bool) -> None:
        self._prompts, self._raw = prompts, raw

    def __call__(self, text: str) -> dict[str, Any]:
        """The piece that stands for a plain text; BadRequest unless the upstream continues such texts."""
        if not self._raw:
            raise BadRequest(
                "prompt is a text without a conversation, which this upstream cannot be guarded on: that takes "
                "capability raw; send messages to /v1/chat/completions",
                "prompt",
                "unsupported",
            )
        return {"input_ids": self._prompts.plain(text).ids if text.strip() else ()}

    @staticmethod
    def decode(ids: Sequence[int], **_: Any) -> str:
        """The text of pieces."""
        return text_of(ids)
