"""Engines that run the model, and what each must offer."""

from anydepth.backends.protocol import (
    CONTENT,
    WHOLE,
    Backend,
    Capability,
    CheckPoint,
    FinishedAnswer,
    ModelIdentity,
    Read,
    Reader,
    Session,
    Site,
)

__all__ = [
    "CONTENT",
    "WHOLE",
    "Backend",
    "Capability",
    "CheckPoint",
    "FinishedAnswer",
    "ModelIdentity",
    "Read",
    "Reader",
    "Session",
    "Site",
]
