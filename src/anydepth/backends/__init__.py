"""Engines that run the model, and what each must offer."""

from anydepth.backends.protocol import (
    CONTENT,
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
