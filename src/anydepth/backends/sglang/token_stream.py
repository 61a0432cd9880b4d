"""The tokens of one answer, as a server streams them or as they are given."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from uuid import uuid4

from anydepth.backends.sglang.sglang_client import SglangClient
from anydepth.errors import ModelError


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended.

    Attributes:
        finish_reason: `stop` or `length`.
        end_tokens: How many end-of-turn tokens are its last (0 or 1).
    """

    finish_reason: Literal["stop", "length"]
    end_tokens: int = 0


class TokenSource(Protocol):
    """Where a row of a session has its tokens from."""

    def start(self) -> None:
        """Begin, if it has not begun."""
        ...

    def take(self, n: int) -> tuple[list[int], Ending | None]:
        """The next `n` tokens or fewer, at least one unless the answer is over, and the ending with the last token."""
        ...

    def close(self) -> None:
        """Stop the answer if it goes on."""
        ...


class GivenTokens:
    """An answer that is known already; implements `TokenSource`."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._left = list(token_ids)

    def start(self) -> None:
        """Nothing has to begin."""

    def take(self, n: int) -> tuple[list[int], Ending | None]:
        """The next `n` tokens; at the last the answer has reached its length."""
        taken, self._left = self._left[:n], self._left[n:]
        return taken, None if self._left else Ending("length")

    def close(self) -> None:
        """Nothing goes on."""


class TokenStream:
    """An answer that a server writes; implements `TokenSource`.

    The server goes on while what it wrote is being checked: the tokens wait in the connection.

    Args:
        client: The server.
        ids: The prompt, its prefill included.
        sampling: SGLang's sampling parameters, `max_new_tokens` among them.
        incremental: Whether each piece of the stream has the new tokens only.
    """

    def __init__(
        self, client: SglangClient, ids: Sequence[int], sampling: Mapping[str, Any], *, incremental: bool
    ) -> None:
        self._client, self._incremental, self._length = client, incremental, len(ids)
        self.request_id = f"anydepth-{uuid4().hex}"
        self._stops = frozenset(sampling["stop"])
        self._body = {"input_ids": list(ids), "sampling_params": dict(sampling), "stream": True, "rid": self.request_id}
        self._pieces: Iterator[dict[str, Any]] | None = None
        self._held: list[int] = []
        self._seen = 0
        self._ending: Ending | None = None

    def start(self) -> None:
        """Send the request."""
        if self._pieces is None:
            self._pieces = self._client.stream("/generate", self._body)

    def take(self, n: int) -> tuple[list[int], Ending | None]:
        """The next `n` tokens; see `TokenSource.take`. ModelError if the server fails or loses a token."""
        self.start()
        while len(self._held) < n and self._ending is None:
            self._pull()
        taken, self._held = self._held[:n], self._held[n:]
        return taken, None if self._held else self._ending

    def close(self) -> None:
        """Abort the request if it goes on, and hang up."""
        if self._pieces is None:
            return
        if self._ending is None:
            self._client.abort(self.request_id)
        with closing(self._pieces):  # pyright: ignore[reportArgumentType]
            self._pieces = None

    def _pull(self) -> None:
        assert self._pieces is not None
        piece = next(self._pieces, None)
        if piece is None:
            raise self._failure("the stream ended before the answer")
        ids, meta = piece.get("output_ids"), piece.get("meta_info")
        if not isinstance(ids, list) or not isinstance(meta, dict) or not all(isinstance(each, int) for each in ids):
            raise self._failure("a piece of the stream has no token ids")
        finish = meta.get("finish_reason")
        if isinstance(finish, dict) and finish.get("type") not in ("stop", "length"):
            raise self._failure(f"it ended the answer: {finish.get('message') or finish.get('type')}")
        fresh = ids if self._incremental else ids[self._seen :]
        if not self._incremental and len(ids) < self._seen:
            raise self._failure(f"a piece of the stream has {len(ids)} tokens, an earlier one {self._seen}")
        self._held += fresh
        self._seen += len(fresh)
        if isinstance(finish, dict):
            self._ending = self._end(finish, meta, ids)

    def _end(self, finish: Mapping[str, Any], meta: Mapping[str, Any], ids: Sequence[int]) -> Ending:
        counts = meta.get("prompt_tokens"), meta.get("completion_tokens")
        if counts != (self._length, self._seen):
            raise self._failure(
                f"it counts {counts[0]} tokens of the prompt and {counts[1]} of the answer, sent and received were "
                f"{self._length} and {self._seen}"
            )
        if finish["type"] == "length":
            return Ending("length")
        matched = finish.get("matched")
        if isinstance(matched, str) and matched in self._stops:
            return Ending("stop")
        if isinstance(matched, int) and ids and ids[-1] == matched:
            return Ending("stop", 1)
        # SGLang writes an end of turn in place of a token that is none, and says so where a stop string would be
        raise self._failure(f"it stopped the answer at {matched!r}, which nobody asked for")

    def _failure(self, why: str) -> ModelError:
        return ModelError(f"the SGLang server at {self._client.url} failed while it wrote an answer: {why}")
