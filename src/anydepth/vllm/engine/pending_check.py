"""Collect the values of one check while the engine's steps bring them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anydepth.detectors import TextDetector
from anydepth.errors import CheckError
from anydepth.types import Score
from anydepth.vllm.engine.answer_tokens import AnswerTokens
from anydepth.vllm.engine.positions import Place
from anydepth.vllm.setup import Setup
from anydepth.vllm.wire import OPENERS, Key


@dataclass(slots=True, eq=False)
class PendingCheck:
    """One check at one depth, read at several places that may fall into different steps (chunked prefill).

    Attributes:
        depth: Depth of the check, in tokens.
        request: vLLM's request that is read: the answer's own, or one that was made for the check.
        places: Where to read single states, or the probability of the openers; none for a look-ahead.
        values: Index of a read -> what the worker found there (`Findings`), as far as it has come.
        step: vLLM's record of the step in which the check rides, once it was scheduled; None if it rides in none.
        over: True once vLLM is done with the request, as far as the check needs it.
        failure: Why no score can be had of it, or None.
        look_ahead: The detector that judges the text which `request` generates; None for a check that reads.
    """

    depth: int
    request: Any
    places: Sequence[Place]
    values: dict[int, Any] = field(default_factory=dict)
    step: Any = None
    over: bool = False
    failure: str | None = None
    look_ahead: TextDetector | None = None

    @property
    def unread(self) -> list[Place]:
        """The places that have not been read yet."""
        return [(position, read) for position, read in self.places if read not in self.values]

    def decided(self, setup: Setup) -> bool:
        """True if no more tokens of a check request can change the score."""
        return self.look_ahead is None or setup.decided(self.look_ahead, self.request.output_token_ids)

    def take(self, found: Mapping[Key, Any]) -> None:
        """Keep what a step has found at the check's places."""
        for place in self.places:
            if (key := (self.request.request_id, *place)) in found:
                self.values[place[1]] = found[key]

    def score(self, setup: Setup, tokens: AnswerTokens) -> Score | Exception:
        """The score of the values and of the means over the answer's `tokens`.

        An error stands for a place or token that was not read, a request that was not finished, or a detector that
        failed.
        """
        if self.failure is not None:
            return CheckError(self.failure)
        if self.unread:
            return CheckError(f"nothing was read at position {min(self.unread)[0]}")
        try:
            if self.look_ahead is not None:
                return setup.score_text(self.look_ahead, self.request.output_token_ids)
            if OPENERS in self.values:
                return Score(min(self.values[OPENERS], 1.0))
            return setup.score(self.values | self._means(setup, tokens))
        except Exception as error:  # a detector of somebody else's: its failure is a failed check
            return error

    def _means(self, setup: Setup, tokens: AnswerTokens) -> dict[int, Any]:
        """Index of each read that is a mean -> its value at this depth."""
        if not self.depth:
            return {read: setup.nothing for read, _ in setup.means}
        return {read: tokens.mean(column, self.depth, token) for column, (read, token) in enumerate(setup.means)}
