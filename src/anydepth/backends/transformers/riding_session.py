"""Answers under way whose checks ride in the decode step."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from anydepth.backends.protocol import CheckPoint, Read, last_header_token, sites_of
from anydepth.backends.transformers.fork import select_rows
from anydepth.backends.transformers.ride import Ridden, cache_refusal, ride
from anydepth.backends.transformers.session import TransformersSession


class RidingSession(TransformersSession):
    """A session whose checks ride in the pass that feeds the last token, where that token has not been fed yet.

    Those of depth 0 and of the end of a prefill cost no pass of the last token anyway; a check behind an end of turn,
    or of an answer that goes no further, would have the rest of the model run for nothing: they read as
    `TransformersSession` does. So does a cache that cannot give the header back (`ride.cache_refusal`).

    The last token goes through the model together with the header, so that its logits may differ in their last digits
    from those of a pass of its own.

    Attributes:
        way: `ride`.
        ridden: The pass that the next window goes on from, if a check has fed the last token.
    """

    way = "ride"

    ridden: Ridden | None = None

    def hidden_states(
        self, points: Sequence[CheckPoint], reads: Sequence[Read], *, embeddings: np.ndarray | None = None
    ) -> np.ndarray:
        """Make all `reads` for each point in one forward pass; see `EmbeddingSession.hidden_states`."""
        with self.passes.lock:
            if not points or not reads or not all(map(self._at_last_token, points)):
                return super().hidden_states(points, reads, embeddings=embeddings)
            if self._rides(reads):
                self._ride(reads, embeddings)
            if self.ridden is None or not self._has(self.ridden, reads, embeddings):
                return super().hidden_states(points, reads, embeddings=embeddings)
            rows = [point.row for point in points]
            states = {site: self.ridden.states[site][rows] for site in sites_of(reads)}
            return self.passes.make_reads(states, 1, reads, self._span(rows), self._ids.shape[1])

    def close(self) -> None:
        """Free the cache; the session cannot be used afterwards."""
        self.ridden = None
        super().close()

    def _at_last_token(self, point: CheckPoint) -> bool:
        """Whether `point` is where its row is now, and the header follows the last token that was decoded."""
        row = self._rows[point.row]
        return bool(self._cached) and not self._ahead and 0 < point.depth == row.depth and not row.end_tokens

    def _rides(self, reads: Sequence[Read]) -> bool:
        """Whether a pass over the last token can be made now that the next window goes on from."""
        header = last_header_token(reads) + 1
        return (
            self._ids.shape[1] - self._cached == 1
            and any(row.live for row in self._rows)
            and not self.passes.inputs.starts_anew(self._cached, self._ids.shape[1] + header)
            and cache_refusal(self.cache, header) is None
        )

    def _ride(self, reads: Sequence[Read], embeddings: np.ndarray | None) -> None:
        means = sites_of(read for read in reads if read.is_mean)
        self._keep(means)
        if means:
            self._catch_up()
        kept = self._kept_up_to(self._cached)
        sites = tuple(dict.fromkeys((*sites_of(reads), *(kept.sites if kept else ()))))
        header = self.passes.header.ids if embeddings is None else self.passes.stand_ins(embeddings)
        header, text = header[: last_header_token(reads) + 1], (self._ids[:, self._cached :], self._mask)
        self.ridden = ride(self.passes.model, self.passes.inputs, self.cache, text, header, sites, embeddings)
        self._cached += 1
        if kept is not None:
            kept.add({site: [states[:, :1]] for site, states in self.ridden.states.items()}, self._cached)

    def _has(self, ridden: Ridden, reads: Sequence[Read], embeddings: np.ndarray | None) -> bool:
        """Whether `ridden`, the pass over the last token, saw all that `reads` need."""
        means = [read.site for read in reads if read.is_mean]
        known = self._kept.sites if self._kept is not None and self._kept.end == self._cached else ()
        return (
            set(sites_of(reads)) <= ridden.states.keys()
            and last_header_token(reads) < ridden.header
            and _same(ridden.embeddings, embeddings)
            and set(means) <= set(known)
        )

    def _window(self, ids: torch.Tensor, mask: torch.Tensor, n: int, stop: Any, options: dict[str, Any]) -> Any:
        ridden, self.ridden = self.ridden, None
        return self.passes.generate(ids, mask, self.cache, n, stop, options, first=ridden)

    def _fork(self, source: Any, rows: list[int], again: int) -> Any:
        if again and self.ridden is not None:
            # The last token is to be read once more. A copy: the answer's cache has it where this fork would write.
            return select_rows(self.ridden.before, rows)
        return super()._fork(source, rows, again)


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """Whether the same stands behind the text: the header, or these embeddings."""
    return one is other or (one is not None and other is not None and np.array_equal(one, other))
