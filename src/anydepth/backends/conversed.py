"""Give a conversation and its answer so far as text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anydepth.templates.prompt import Prompt


class WrittenText(str):
    """A text that a model wrote, and how many tokens it took.

    Attributes:
        tokens: Tokens of the text.
    """

    tokens: int

    def __new__(cls, text: str, tokens: int) -> "WrittenText":
        """The text with its number of tokens."""
        written = super().__new__(cls, text)
        written.tokens = tokens
        return written


def written(ids: Sequence[int], padding_id: int, decode: Callable[[Sequence[int]], str]) -> WrittenText:
    """The text of `ids`; padding behind it, of a row that ended before others, is not counted."""
    padding = next((place for place, each in enumerate(reversed(ids)) if each != padding_id), len(ids))
    return WrittenText(decode(ids), len(ids) - padding)


@dataclass(frozen=True, slots=True)
class Conversed:
    """A conversation at one depth of its answer.

    Attributes:
        messages: The messages before the answer, `{"role": ..., "content": ...}` each.
        answer: The answer so far, a client's prefill included; empty at depth 0.
    """

    messages: tuple[Mapping[str, Any], ...]
    answer: str


def conversed(prompt: Prompt, answer_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> Conversed:
    """The conversation of a prompt and an answer of these tokens.

    A prompt that was not made of messages is taken for one message of the user: its whole text, special tokens left
    out.

    Args:
        prompt: The prompt; its prefill is left out of account.
        answer_ids: Tokens of the answer, a prefill included.
        decode: Text of token ids, special tokens left out.
    """
    messages = prompt.messages or ({"role": "user", "content": decode(prompt.ids[: prompt.start])},)
    return Conversed(messages, decode(answer_ids) if answer_ids else "")
