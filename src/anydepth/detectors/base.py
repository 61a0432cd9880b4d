"""What a detector is: it turns a check into a score."""

import math
from collections.abc import Sequence
from typing import Protocol

from anydepth.backends.base import Backend, Capability, CheckPoint, Session
from anydepth.errors import CapabilityError, CheckError
from anydepth.types import Score


class Detector(Protocol):
    """Reads the Safety Tokens of a session and says how harmful the answer has become.

    Attributes:
        name: What to call the detector in messages and records.
        needs: What it asks of a backend.
    """

    name: str
    needs: frozenset[Capability]

    def bind(self, backend: Backend) -> None:
        """Verify, once and before the first token, that the detector fits this backend.

        Raises:
            CapabilityError: The backend lacks something that the detector needs.
            ProbeMismatch: The detector was made for another model, template, header or site.
            UnsupportedModel: The model cannot do what the detector asks.
        """
        ...

    def check(self, session: Session, points: Sequence[CheckPoint]) -> list[Score]:
        """Score each point, in order; CheckError if one of them has no usable score."""
        ...


def require_capabilities(detector: Detector, backend: Backend) -> None:
    """Raise CapabilityError if the backend lacks something that the detector needs."""
    missing = detector.needs - backend.capabilities
    if missing:
        raise CapabilityError(
            f"detector {detector.name!r} needs {', '.join(sorted(missing))}, which the backend "
            f"{type(backend).__name__} does not offer; choose another detector or backend"
        )


def require_usable(scores: Sequence[Score], points: Sequence[CheckPoint], name: str) -> list[Score]:
    """Return one score in [0, 1] a point; CheckError names the depth of the first that is not."""
    if len(scores) != len(points):
        raise CheckError(f"detector {name!r} gave {len(scores)} scores for {len(points)} checks")
    for score, point in zip(scores, points, strict=True):
        if not (math.isfinite(score.value) and 0 <= score.value <= 1):
            raise CheckError(
                f"detector {name!r} gave the score {score.value} at depth {point.depth} (row {point.row}); "
                "a score is a number in [0, 1]"
            )
    return list(scores)
