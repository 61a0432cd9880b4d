"""Render messages with a tokenizer's chat template, in the form that the template takes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from anydepth.errors import ConfigError

_TRIAL = "anydepthtrial"

_OWN_ARGUMENTS = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "return_dict",
    "return_tensors",
    "sanitize_control_tokens",
    "tokenize",
    "tools",
}


@dataclass(frozen=True, slots=True)
class Renderer:
    """Messages as a tokenizer's chat template writes them, as text and as ids.

    Attributes:
        tokenizer: The tokenizer.
        template: A chat template to use instead of the tokenizer's own, or None.
        kwargs: Variables for the template.
        listed: True if no tools are the list `[]` for the template, which cannot take None.
        parts: True if the content of a message is a list of parts for the template, which cannot take text.
    """

    tokenizer: Any
    template: str | None
    kwargs: Mapping[str, Any]
    listed: bool = False
    parts: bool = False

    def text(self, messages: Sequence[Any], *, generate: bool = True, tools: Sequence[Any] | None = None) -> str:
        """Render `messages`; raises whatever the template raises."""
        return self.tokenizer.apply_chat_template(
            [_in_parts(message) for message in messages] if self.parts else list(messages),
            tools=list(tools) if tools else ([] if self.listed else None),
            chat_template=self.template,
            add_generation_prompt=generate,
            tokenize=False,
            **self.kwargs,
        )

    def tried(
        self, messages: Sequence[Any], *, generate: bool = True, tools: Sequence[Any] | None = None
    ) -> str | None:
        """Render `messages`; None if the template refuses them, whatever its author raises."""
        try:
            return self.text(messages, generate=generate, tools=tools)
        except Exception:
            return None

    def ids(self, text: str) -> list[int]:
        """Tokenise rendered text; `bos` is what the template wrote, the tokenizer must not add a second one."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def ids_after(self, context: str, text: str, before: list[int] | None = None) -> tuple[int, ...]:
        """Return the ids of `text` where it follows `context`, whose own ids stay as they are.

        The difference of ids is right also for tokenizers that put a space before what they take for a beginning. Where
        `text` would merge with the end of `context` it is tokenised by itself: at run time the tokens before it are
        fixed already, and nothing can merge with them. `before` are the ids of `context`, if they are known.
        """
        before = self.ids(context) if before is None else before
        whole = self.ids(context + text)
        if whole[: len(before)] == before:
            return tuple(whole[len(before) :])
        return tuple(self.ids(text))

    def writes(self, *, tools: Sequence[Any] | None = None) -> bool:
        """Say whether the template writes the text of a plain user message."""
        return _TRIAL in (self.tried([{"role": "user", "content": _TRIAL}], tools=tools) or "")

    def fitted(self) -> "Renderer":
        """Return the first way to give messages in which their text is written, or `self` if there is none.

        Most templates take text, and None where there are no tools. Some loop over the tools, or over the parts of a
        content, without asking what they are.
        """
        fits = (replace(self, listed=listed, parts=parts) for parts, listed in product((False, True), repeat=2))
        return next((each for each in fits if each.writes()), self)


def _in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, str):
        return dict(message)
    return {**message, "content": [{"type": "text", "text": content}]}  # an empty one too: some look at the first part


def checked_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return variables for a template as a dict; ConfigError if one of them is not the template's to set."""
    if taken := sorted(_OWN_ARGUMENTS & set(kwargs)):
        raise ConfigError(f"template_kwargs has {taken[0]!r}, which anydepth sets itself; leave it out")
    return dict(kwargs)
