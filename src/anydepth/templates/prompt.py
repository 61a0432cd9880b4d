"""A conversation as token ids."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, ready for the model.

    Attributes:
        ids: The whole prompt, the client's assistant prefill included.
        prefill: How many of the last ids are the prefill, an opener of the answer channel before it included.
    """

    ids: tuple[int, ...]
    prefill: int = 0

    @property
    def start(self) -> int:
        """Position of depth 0: the length of the prompt without its prefill."""
        return len(self.ids) - self.prefill
