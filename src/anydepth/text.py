"""Turn released tokens into text without ever breaking a character."""

from collections.abc import Callable, Sequence

_PARTIAL = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Incremental detokenizer: bytes of a character that is not complete yet are kept back until it is.

    `prefix` are tokens that came before (a client's prefill): they fix how the first new token is spaced, and are not
    part of the text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prefix: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(prefix)
        self._sent = len(decode(self._ids)) if prefix else 0

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that these tokens add, without a trailing partial character."""
        self._ids.extend(token_ids)
        return self._advance(self._decode(self._ids).rstrip(_PARTIAL))

    def flush(self) -> str:
        """What is still kept back, partial characters included."""
        return self._advance(self._decode(self._ids))

    def _advance(self, text: str) -> str:
        delta = text[self._sent :]
        self._sent = max(self._sent, len(text))
        return delta
