"""One answer of a batch under way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from anydepth.backends.conversed import Conversed, conversed
from anydepth.backends.protocol import CheckPoint
from anydepth.templates.template import Prompt


@dataclass(slots=True)
class SessionRow:
    """One answer of the batch.

    Attributes:
        prompt: What is answered, with the client's prefill.
        depth: Tokens of the answer so far, an end of turn not counted.
        end_tokens: How many tokens at its end end the turn.
        live: Whether it goes on.
    """

    prompt: Prompt
    depth: int
    end_tokens: int = 0
    live: bool = True

    def conversed(self, ids: Any, depth: int, decode: Callable[[Sequence[int]], str]) -> Conversed:
        """The conversation at `depth`; `ids` are the tokens of the answer, a prefill included, integers `[t]`."""
        return conversed(self.prompt, ids[:depth].tolist(), decode)


def later(points: Sequence[CheckPoint]) -> dict[int, CheckPoint]:
    """The points beyond depth 0, by their places."""
    return {place: point for place, point in enumerate(points) if point.depth}
