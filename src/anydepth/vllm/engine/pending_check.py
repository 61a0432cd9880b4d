"""Collect the values of one check while the engine's steps bring them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from anydepth.errors import CheckError
from anydepth.types import Score
from anydepth.vllm.engine.positions import Place
from anydepth.vllm.setup import Setup
from anydepth.vllm.wire import Findings


@dataclass(slots=True, eq=False)
class PendingCheck:
    """One check at one depth, read at several places that may fall into different steps (chunked prefill).

    Attributes:
        depth: Depth of the check, in tokens.
        request: vLLM's request that is read: the answer's own, or one that was made for the check.
        places: Where to read; empty for a look-ahead, which is judged by the text that `request` generates.
        values: Index of a read -> what the worker found there (`Findings`), as far as it has come.
        result: The score, or the failure of the check; None while it is being made.
    """

    depth: int
    request: Any
    places: Sequence[Place]
    values: dict[int, Any] = field(default_factory=dict)
    result: Score | Exception | None = None

    @property
    def unread(self) -> list[Place]:
        """The places that have not been read yet."""
        return [(position, read) for position, read in self.places if read not in self.values]

    def take(self, findings: Findings) -> None:
        """Keep what a step has found at the check's places."""
        for place in self.places:
            if (key := (self.request.request_id, *place)) in findings:
                self.values[place[1]] = findings[key]

    def score(self, setup: Setup) -> Score | Exception:
        """The score of the values; an error stands for a place that was not read, or a detector that failed."""
        if self.unread:
            return CheckError(f"nothing was read at position {min(self.unread)[0]}")
        try:
            return setup.score(self.values) if self.places else setup.score_text(self.request.output_token_ids)
        except Exception as error:  # a detector of somebody else's: its failure is a failed check
            return error
