"""One unguarded answer that every defence is replayed on."""

from dataclasses import dataclass

from anydepth.templates.template import Prompt
from anydepth.types import FinishReason


@dataclass(frozen=True, slots=True)
class Transcript:
    """An answer of the bare model.

    Attributes:
        id: Unique among those that are replayed together.
        prompt: What it answers, a forced prefill included.
        token_ids: What the model wrote after it, the end of turn left out; may be empty.
        finish_reason: Why it ended.
        end_tokens: How many end-of-turn tokens followed (0 or 1).
    """

    id: str
    prompt: Prompt
    token_ids: tuple[int, ...]
    finish_reason: FinishReason = "length"
    end_tokens: int = 0

    @property
    def start(self) -> Prompt:
        """The question alone."""
        return Prompt(self.prompt.ids[: self.prompt.start])

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """Prefill and what the model wrote: depth d is behind the first d of these."""
        return (*self.prompt.ids[self.prompt.start :], *self.token_ids)
