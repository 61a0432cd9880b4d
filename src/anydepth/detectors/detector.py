"""What a detector is: it turns a check into a score."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeGuard, runtime_checkable

from anydepth.backends.protocol import Capability, CheckPoint, Read, Reader, Session
from anydepth.backends.trained_tokens import REMEDY, states_at
from anydepth.errors import CapabilityError, CheckError
from anydepth.types import Score

if TYPE_CHECKING:
    import numpy as np


class Detector(Protocol):
    """Reads the Safety Tokens of a session and says how harmful the answer has become.

    A detector whose score depends on hidden states alone declares them: see `StateDetector`. A detector may also have
    a `policy`, the `Policy` that it was calibrated with, which a guard uses unless the operator names another.

    Attributes:
        name: Name of the detector in messages and records.
        needs: The capabilities that it needs of a backend.
    """

    name: str
    needs: frozenset[Capability]

    def bind(self, backend: Reader) -> None:
        """Verify, once and before the first token, that the detector fits this backend.

        Raises:
            CapabilityError: The backend lacks something that the detector needs.
            ProbeMismatch: The detector was made for another model, template, header or site.
            UnsupportedModel: The model lacks a block or module that the detector reads.
        """
        ...

    def check(self, session: Session, points: Sequence[CheckPoint]) -> list[Score]:
        """Score each point, in order; CheckError if one of them has no usable score."""
        ...


@runtime_checkable
class StateDetector(Detector, Protocol):
    """A detector that says what it reads: its score at a depth is a function of the hidden states of its `reads` alone.

    Such a detector scores a finished answer in one packed pass, is read inside a client's prefill, and rides in vLLM.
    Any class with these members is one; `LinearProbe` is the example, and `check_states` is a whole `check`.

    A detector with Safety Tokens of its own also has `embeddings`, float32 `[tokens, hidden_size]`, which are appended
    in the place of the header, and needs `Capability.EMBEDDINGS`. A read's token is then an index in `embeddings`.
    """

    @property
    def reads(self) -> tuple[Read, ...]:
        """Which hidden states are read at a check, at least one."""
        ...

    def score_each(self, states: "np.ndarray") -> list[Score | Exception]:
        """Score states, float32 `[n, len(reads), hidden_size]`; a CheckError stands for one without a usable score."""
        ...


@runtime_checkable
class LinearDetector(StateDetector, Protocol):
    """A `StateDetector` whose score is the sigmoid of a weighted sum, which can be computed where the states are.

    Attributes:
        weight: Weight per read and width, float32 `[reads, hidden_size]`.
        bias: The number that is added to the sum.
    """

    weight: "np.ndarray"
    bias: float


@runtime_checkable
class TextDetector(Protocol):
    """A detector that judges what the model writes after the header, token by token or by its first token.

    Attributes:
        mode: `look-ahead` (text) or `score` (probability of the refusal openers).
        max_new_tokens: Length of the look-ahead at most.
        opener_ids: Token ids of the refusal openers, sorted; None for a look-ahead.
    """

    mode: str
    max_new_tokens: int
    opener_ids: tuple[int, ...] | None

    def judge_text(self, text: str) -> Score:
        """The score of a look-ahead."""
        ...

    def decided(self, text: str) -> bool:
        """True if no more text can change the score."""
        ...


def declares_reads(detector: object) -> TypeGuard[StateDetector]:
    """True if `detector` is a `StateDetector` that reads at least one state."""
    return isinstance(detector, StateDetector) and bool(detector.reads)


def embeddings_of(detector: object) -> "np.ndarray | None":
    """The Safety Tokens that a detector brings along, float32 `[tokens, hidden_size]`; None if it reads the header."""
    return getattr(detector, "embeddings", None)


def require_header(detector: object, who: str) -> None:
    """CapabilityError if `detector` has Safety Tokens of its own: `who` appends the template's header."""
    if (embeddings := embeddings_of(detector)) is not None:
        raise CapabilityError(
            f"{who} appends the template's header; the probe has {len(embeddings)} trained Safety Tokens: give a probe "
            "that reads the header"
        )


def detector_parts(detector: Detector) -> tuple[Detector, ...]:
    """The detectors that make the checks: those that a combination names as its `parts`, or itself."""
    parts: tuple[Detector, ...] = getattr(detector, "parts", ())
    return tuple(each for part in parts for each in detector_parts(part)) if parts else (detector,)


def check_states(detector: StateDetector, session: Session, points: Sequence[CheckPoint]) -> list[Score]:
    """Read the states of `points` and score them: the `check` of a detector that declares its reads.

    Raises:
        CheckError: The session gave another number of states, or a point has no usable score; the message names the
            depth and row of the first.
    """
    if not points:
        return []
    states = states_at(session, points, detector.reads, embeddings_of(detector))
    if len(states) != len(points):
        raise CheckError(f"the backend gave {len(states)} hidden states for {len(points)} checks")
    scores: list[Score] = []
    for point, score in zip(points, detector.score_each(states), strict=True):
        if isinstance(score, Exception):
            raise CheckError(f"check at depth {point.depth} (row {point.row}): {score}") from score
        scores.append(score)
    return scores


def require_capabilities(detector: Detector, backend: Reader) -> None:
    """Compare what the detector needs with what the backend offers.

    Raises:
        CapabilityError: The backend lacks a capability; the message names detector, capability and backend.
    """
    missing = detector.needs - backend.capabilities
    if missing:
        remedy = REMEDY if missing == {Capability.EMBEDDINGS} else "choose another detector or backend"
        raise CapabilityError(
            f"detector {detector.name!r} needs {', '.join(sorted(missing))}, which the backend "
            f"{type(backend).__name__} does not offer; {remedy}"
        )


def require_usable(scores: Sequence[Score], points: Sequence[CheckPoint], name: str) -> list[Score]:
    """Return the scores if there is one in [0, 1] per point.

    Raises:
        CheckError: There are more or fewer scores, or one is not in [0, 1]; the message names its depth and row.
    """
    if len(scores) != len(points):
        raise CheckError(f"detector {name!r} gave {len(scores)} scores for {len(points)} checks")
    for score, point in zip(scores, points, strict=True):
        if not (math.isfinite(score.value) and 0 <= score.value <= 1):
            raise CheckError(
                f"detector {name!r} gave the score {score.value} at depth {point.depth} (row {point.row}); "
                "a score is a number in [0, 1]"
            )
    return list(scores)
