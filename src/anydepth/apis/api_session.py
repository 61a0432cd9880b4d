"""Answers under way over an API: streams, and look-aheads behind what they have given so far."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from anydepth.apis.answer_handle import AnswerHandle
from anydepth.apis.provider import ChatTurn, Ended, Streamed
from anydepth.apis.spending import Purpose, Spending
from anydepth.apis.text_pieces import PLAIN, Piece
from anydepth.backends.conversed import Conversed
from anydepth.backends.protocol import CheckPoint, Read
from anydepth.errors import CapabilityError, ProviderError
from anydepth.prices import TokenCount
from anydepth.types import Decoded


class FreshTurns(Protocol):
    """What a session asks its backend for."""

    def fresh_turn(
        self,
        history: tuple[ChatTurn, ...],
        partial: str,
        max_tokens: int,
        purpose: Purpose,
        *,
        spending: Spending | None = None,
    ) -> str:
        """The text of a fresh assistant turn behind the partial answer; what it used goes to `spending`."""
        ...

    def first_tokens(
        self, history: tuple[ChatTurn, ...], partial: str, purpose: Purpose, *, spending: Spending | None = None
    ) -> Mapping[str, float]:
        """The log-probabilities of the most probable first tokens of such a turn, by their texts."""
        ...


@dataclass(slots=True)
class StreamedRow:
    """One answer.

    Attributes:
        history: The conversation before it.
        stream: Its text, piece by piece.
        budget: Pieces to give at most.
        spending: What it has used.
        text: The answer so far, a prefill included.
        depth: How many pieces that are.
        given: How many of them were streamed.
        over: True once there is nothing more to give.
        refused: The provider's word for its own refusal, where that ended the answer.
        last: Text and length of the last look-ahead, and what it found.
        last_tokens: Text of the last first tokens that were asked for, and these.
    """

    history: tuple[ChatTurn, ...]
    stream: Streamed
    budget: int
    spending: Spending
    text: str = ""
    depth: int = 0
    given: int = 0
    over: bool = False
    refused: str | None = None
    last: tuple[str, int, str] | None = None
    last_tokens: tuple[str, Mapping[str, float]] | None = None

    def conversed(self, depth: int) -> Conversed:
        """The conversation at depth 0 or at the row's own; a plain text is taken for a message of the user."""
        said = [{"role": "user" if each.role == PLAIN else each.role, "content": each.text} for each in self.history]
        return Conversed(tuple(said), self.text_at(depth))

    def text_at(self, depth: int) -> str:
        """The answer at depth 0 or at the row's own; ValueError for another depth."""
        if depth not in (0, self.depth):
            raise ValueError(f"a row is at depth {self.depth}; it cannot be read at depth {depth}")
        return self.text if depth else ""

    def close(self) -> None:
        """Give the rest of the stream up."""
        self.over = True
        close = getattr(self.stream, "close", None)
        if close is not None:
            close()


class ApiSession:
    """Implements `anydepth.backends.protocol.Session`.

    A stream is asked for at the first `decode`: an answer that is halted at depth 0 costs its check only. The provider
    goes on writing while a check is made.

    Args:
        backend: Asks for look-aheads.
        rows: The answers.
        handle: Is told what failed in a look-ahead.
    """

    def __init__(self, backend: FreshTurns, rows: Sequence[StreamedRow], handle: AnswerHandle | None = None) -> None:
        self._backend, self._rows, self._handle = backend, list(rows), handle or AnswerHandle()

    @property
    def rows(self) -> int:
        """How many answers the session holds."""
        return len(self._rows)

    def decode(self, n: int) -> list[Decoded]:
        """Up to `n` more pieces of every live row; ProviderError if a stream fails or breaks off."""
        return [Decoded(()) if row.over else self._advance(row, n) for row in self._rows]

    def drop(self, row: int) -> None:
        """Close the stream of a row that was halted."""
        self._rows[row].close()

    def look_ahead(
        self, points: Sequence[CheckPoint], max_new_tokens: int, decided: Callable[[str], bool]
    ) -> list[str]:
        """The text of a fresh turn behind each row, at most `max_new_tokens` of the provider's tokens.

        An answer that the provider ended itself needs no request: its refusal is the text. `decided` is not asked,
        since a reply comes whole.

        Raises:
            ProviderError: A request failed.
            CheckError: A reply has no text because it spent its tokens on thoughts.
        """
        return [self._look_ahead(self._rows[point.row], point.depth, max_new_tokens) for point in points]

    def hidden_states(self, points: Sequence[CheckPoint], reads: Sequence[Read]) -> Any:
        """CapabilityError: an API has no hidden states."""
        raise CapabilityError("an API gives no hidden states; use Rethink()")

    def next_token_logprobs(self, points: Sequence[CheckPoint]) -> Any:
        """CapabilityError: an API does not give the probabilities of all tokens."""
        raise CapabilityError("an API does not give the probabilities of all tokens; use Rethink(mode='look-ahead')")

    def next_token_texts(self, points: Sequence[CheckPoint]) -> list[Mapping[str, float]]:
        """The most probable first tokens of a fresh turn behind each row; see `Session.next_token_texts`.

        An answer that the provider ended itself needs no request: its refusal is the one token.

        Raises:
            ProviderError: A request failed.
            CheckError: A reply comes without log-probabilities, or spent its tokens on thoughts.
        """
        return [self._first_tokens(self._rows[point.row], point.depth) for point in points]

    def conversations(self, points: Sequence[CheckPoint]) -> list[Conversed]:
        """The messages and the answer so far of each point, as text."""
        return [self._rows[point.row].conversed(point.depth) for point in points]

    def usage(self, row: int) -> dict[str, Any]:
        """What the answer of a row has used so far, `answers` (its stream) and `checks`: see `ApiBackend.report`."""
        record = self._rows[row].spending.record()
        return {purpose: record[purpose] for purpose in ("answers", "checks")}

    def close(self) -> None:
        """Close all streams."""
        for row in self._rows:
            row.close()

    def _advance(self, row: StreamedRow, n: int) -> Decoded:
        pieces: list[Piece] = []
        ended = None
        while ended is None and len(pieces) < n:
            event = self._next(row)
            if isinstance(event, Ended):
                ended = event
            else:
                pieces.append(Piece(event))
        row.given += len(pieces)
        if ended is None and row.given >= row.budget:  # its usage and its end come behind the last piece
            event = self._next(row)
            ended = event if isinstance(event, Ended) else Ended("length", "pieces")
        row.text += "".join(piece.text for piece in pieces)
        row.depth += len(pieces)
        if ended is None:
            return Decoded(tuple(pieces))
        row.close()
        row.refused = ended.word if ended.reason == "refused" else None
        return Decoded(tuple(pieces), "length" if ended.reason == "length" else "stop")

    def _next(self, row: StreamedRow) -> str | Ended:
        """The next piece or the end of a row; what it used is passed on."""
        for event in row.stream:
            if not isinstance(event, TokenCount):
                return event
            row.spending.told("answers", event)
        raise ProviderError("a stream ended without its end; ask again")

    def _look_ahead(self, row: StreamedRow, depth: int, max_new_tokens: int) -> str:
        text = row.text_at(depth)
        if row.refused is not None:
            return refusal_of_provider(row.refused)
        if row.last is not None and row.last[:2] == (text, max_new_tokens):
            return str(row.last[2])  # its tokens were counted with the check before
        row.last = (text, max_new_tokens, self._asked(row, text, max_new_tokens))
        return row.last[2]

    def _first_tokens(self, row: StreamedRow, depth: int) -> Mapping[str, float]:
        text = row.text_at(depth)
        if row.refused is not None:
            return {refusal_of_provider(row.refused): 0.0}
        if row.last_tokens is None or row.last_tokens[0] != text:
            with self._told():
                found = self._backend.first_tokens(row.history, text, "checks", spending=row.spending)
            row.last_tokens = (text, found)
        return row.last_tokens[1]

    def _asked(self, row: StreamedRow, text: str, max_new_tokens: int) -> str:
        with self._told():
            return self._backend.fresh_turn(row.history, text, max_new_tokens, "checks", spending=row.spending)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Tell the handle if the provider is to blame for a check that fails."""
        self._handle.failure = None
        try:
            yield
        except ProviderError as error:
            self._handle.failure = error
            self._handle.first_failure = self._handle.first_failure or error
            raise


def refusal_of_provider(word: str) -> str:
    """What a check reads where the provider refused: its word for it, and a refusal that every matcher knows."""
    return f"(the provider ended it: {word}) I can't help with that."


def replayed(pieces: Sequence[Piece]) -> Iterator[str | Ended]:
    """The stream of an answer that is there already."""
    yield from (piece.text for piece in pieces)
    yield Ended("stop", "replayed")
