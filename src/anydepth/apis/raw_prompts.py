"""Render prompts as token ids, for a completions endpoint."""

from collections.abc import Sequence

from anydepth.apis.provider import ChatTurn
from anydepth.apis.text_pieces import PLAIN
from anydepth.templates.template import ChatTemplate

Ids = tuple[int, ...]


class RawPrompts:
    """Prompts of answers and of checks, by a model's own chat template.

    Args:
        template: The chat template.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template

    def of_answer(self, turns: Sequence[ChatTurn], begun: str) -> Ids:
        """Token ids that the answer to a conversation, or the rest of a plain text, follows; `begun` is its start."""
        if (text := _plain(turns)) is not None:
            return self._tokens(text + begun)
        return self.template.prompt(_messages(turns), prefill=begun or None).ids

    def of_check(self, turns: Sequence[ChatTurn], partial: str) -> Ids:
        """Token ids of the conversation, the answer so far and the Safety Tokens."""
        header = self.template.header
        if (text := _plain(turns)) is not None:
            return self._tokens(text + partial) + header.ids + header.answer_ids
        prompt = self.template.prompt(_messages(turns), prefill=partial or None)
        if not partial:
            return prompt.ids + self.template.answer_ids(prompt)
        return prompt.ids + header.ids + header.answer_ids

    def _tokens(self, text: str) -> Ids:
        return tuple(self.template.tokenizer(text)["input_ids"])


def _plain(turns: Sequence[ChatTurn]) -> str | None:
    """The text of a prompt without a conversation; None for a conversation."""
    return turns[0].text if len(turns) == 1 and turns[0].role == PLAIN else None


def _messages(turns: Sequence[ChatTurn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text} for turn in turns]
