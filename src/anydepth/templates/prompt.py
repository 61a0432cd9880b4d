"""A conversation as token ids."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, ready for the model.

    Attributes:
        ids: The whole prompt, the client's assistant prefill included.
        prefill: How many of the last ids are the prefill, an opener of the answer channel before it included.
        messages: The messages that the prompt was made of, the prefill not among them; None if it was made of ids or
            of a plain text. No part of equality.
    """

    ids: tuple[int, ...]
    prefill: int = 0
    messages: tuple[Mapping[str, Any], ...] | None = field(default=None, compare=False, repr=False)

    @property
    def start(self) -> int:
        """Position of depth 0: the length of the prompt without its prefill."""
        return len(self.ids) - self.prefill

    @property
    def question(self) -> "Prompt":
        """The prompt without its prefill."""
        return Prompt(self.ids[: self.start], messages=self.messages)
