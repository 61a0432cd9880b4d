"""Stop strings: end the answer at one, and keep it out of the text."""

from collections.abc import Callable, Sequence
from typing import Any


class StopText:
    """A stopping criterion of Transformers' `generate`: the generated text has a stop string in it.

    Transformers' own `StopStringCriteria` prepares the whole vocabulary for every new set of strings, seconds of work
    that a client could ask for over and over; it also matches text of the prompt. This one decodes the last tokens.
    """

    def __init__(self, stops: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        self._stops, self._decode = tuple(stops), decode
        self._ids: list[int] = []
        # A character has up to four bytes and a token may hold one of them; some tokens have no text at all.
        self._reach = 4 * max(map(len, self._stops)) + 8

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """Bool `[1]`; called once for each new token of the one answer of a session."""
        self._ids = [*self._ids[-self._reach :], int(input_ids[0, -1])]
        text = self._decode(self._ids)
        return input_ids.new_tensor([any(stop in text for stop in self._stops)]).bool()


class StopTrim:
    """Passes text on up to the first stop string; text that may be the beginning of one waits."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held, self.stopped = tuple(stops), "", False

    def push(self, text: str) -> str:
        """The text that may leave."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = held_back(text, self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was waiting; the answer has ended without completing it."""
        held, self._held = self._held, ""
        return held


def held_back(text: str, markers: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of one of `markers`."""
    sizes = (size for marker in markers for size in range(1, len(marker)) if text.endswith(marker[:size]))
    return max(sizes, default=0)
