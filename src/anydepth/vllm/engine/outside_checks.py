"""Have checks made outside of the engine, while vLLM goes on with other requests."""

from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from anydepth.backends.conversed import Conversed, conversed
from anydepth.backends.protocol import CheckPoint
from anydepth.driver import begin_checks
from anydepth.vllm.engine.guarded_request import GuardedRequest
from anydepth.vllm.setup import Setup

_MOST_SECONDS = 0.005
"""How long an engine that has nothing else to do waits at a time: new requests come in between."""


@dataclass(frozen=True, slots=True)
class _AnswerText:
    """What a detector outside needs of a session: one answer as text. The engine knows its prompt as tokens only."""

    setup: Setup
    guarded: GuardedRequest

    def conversations(self, points: Sequence[CheckPoint]) -> list[Conversed]:
        """The prompt as one message, and the answer so far, of each point."""
        prompt, decode = self.guarded.prompt, self.setup.model.decode_text
        answer = list(self.guarded.request.all_token_ids[prompt.start :])
        return [conversed(prompt, answer[: point.depth], decode) for point in points]


def ask_outside(setup: Setup, guarded: GuardedRequest) -> None:
    """Begin the checks of a request's stage that is asked outside; what fails at once is a failed check."""
    staged = guarded.staged
    session: Any = _AnswerText(setup, guarded)
    points = [reading.point for reading in staged.unsure.values()]
    begun = begin_checks(session, setup.stages[staged.at][0], points)
    staged.outside = dict(zip(staged.unsure, begun, strict=True))


def come_from_outside(setup: Setup, requests: Iterable[GuardedRequest], *, idle: bool) -> list[GuardedRequest]:
    """Bring what has come from outside to the flows; returns the requests for which everything has.

    Args:
        setup: The guard.
        requests: The guarded requests.
        idle: True if the engine has nothing else to do: it waits a moment for one of them.
    """
    asked = [each for each in requests if each.staged.outside]
    if idle and asked:
        pending = [each for guarded in asked for each in guarded.staged.outside.values() if isinstance(each, Future)]
        wait(pending, _MOST_SECONDS, FIRST_COMPLETED)
    return [guarded for guarded in asked if guarded.conclude_outside(setup)]
