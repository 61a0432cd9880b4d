"""Answers under way on an SGLang server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import numpy as np

from anydepth.backends.conversed import Conversed
from anydepth.backends.protocol import CheckPoint, Read
from anydepth.backends.sglang.served_states import Place
from anydepth.backends.sglang.token_stream import TokenSource
from anydepth.errors import CapabilityError
from anydepth.templates.template import Prompt
from anydepth.types import Decoded


class TextReader(Protocol):
    """What a session needs of its backend."""

    def read_at(self, places: Sequence[Place], reads: Sequence[Read]) -> np.ndarray:
        """All `reads` at each place, float32 `[len(places), len(reads), hidden_size]`."""
        ...


@dataclass(slots=True)
class AnswerRow:
    """One answer of a session.

    Attributes:
        prompt: What it answers.
        source: Where its tokens come from.
        answer: The answer so far, a client's prefill included, an end of turn not.
        live: Whether it goes on.
    """

    prompt: Prompt
    source: TokenSource
    answer: list[int] = field(default_factory=list)
    live: bool = True

    def __post_init__(self) -> None:
        self.answer += self.prompt.ids[self.prompt.start :]


class SglangSession:
    """A batch of answers under way; implements `anydepth.backends.protocol.Session`.

    Each row is a request of its own: rows end at different times, and none waits for another. The request of a row is
    sent when its first token is decoded, so that nothing is written for a prompt that is halted at depth 0. A check is
    a request for one token, behind the answer so far and the header, which the server finds in its prefix cache.

    Args:
        reader: Makes the checks.
        rows: The answers.
    """

    def __init__(self, reader: TextReader, rows: Sequence[AnswerRow]) -> None:
        self._reader, self._rows = reader, list(rows)

    @property
    def rows(self) -> int:
        """How many answers the session holds."""
        return len(self._rows)

    def decode(self, n: int) -> list[Decoded]:
        """The next `n` tokens of every live row, fewer where it ends; see `Session.decode`.

        Raises:
            ModelError: The server fails, or ends an answer for a reason of its own.
        """
        if n < 1:
            raise ValueError(f"decode({n}): ask for at least one token")
        for row in self._rows:
            if row.live:
                row.source.start()
        return [self._decode(row, n) if row.live else Decoded(()) for row in self._rows]

    def _decode(self, row: AnswerRow, n: int) -> Decoded:
        tokens, ending = row.source.take(n)
        if ending is None:
            row.answer += tokens
            return Decoded(tuple(tokens))
        row.live = False
        row.source.close()
        row.answer += tokens[: len(tokens) - ending.end_tokens]
        return Decoded(tuple(tokens), ending.finish_reason, ending.end_tokens)

    def drop(self, row: int) -> None:
        """Abort the request of a halted row."""
        self._rows[row].live = False
        self._rows[row].source.close()

    def hidden_states(self, points: Sequence[CheckPoint], reads: Sequence[Read]) -> np.ndarray:
        """Make all `reads` for each point, float32 `[len(points), len(reads), hidden_size]`.

        Raises:
            CapabilityError: One of the reads is a mean.
            CheckError: The server gives no state, or none that can be the model's.
        """
        places: list[Place] = []
        for point in points:
            row = self._rows[point.row]
            if point.depth not in (0, len(row.answer)):
                raise ValueError(f"row {point.row} is at depth {len(row.answer)}; it cannot be read at {point.depth}")
            places.append((row.prompt, row.answer, point.depth))
        return self._reader.read_at(places, reads)

    def look_ahead(
        self, points: Sequence[CheckPoint], max_new_tokens: int, decided: Callable[[str], bool]
    ) -> list[str]:
        """CapabilityError: this backend reads hidden states only."""
        self._cannot("look ahead")

    def next_token_logprobs(self, points: Sequence[CheckPoint]) -> np.ndarray:
        """CapabilityError: this backend reads hidden states only."""
        self._cannot("give next-token probabilities")

    def conversations(self, points: Sequence[CheckPoint]) -> list[Conversed]:
        """CapabilityError: this backend reads hidden states only."""
        self._cannot("give the conversation as text")

    def _cannot(self, what: str) -> NoReturn:
        raise CapabilityError(f"the SGLang backend does not {what}; use a probe, or the Transformers engine")

    def close(self) -> None:
        """Abort the requests that go on."""
        for row in self._rows:
            row.live = False
            row.source.close()


def session_of(reader: TextReader, prompts: Sequence[Prompt], sources: Sequence[Any]) -> SglangSession:
    """A session with one row for each prompt and its source of tokens."""
    return SglangSession(reader, [AnswerRow(*each) for each in zip(prompts, sources, strict=True)])
