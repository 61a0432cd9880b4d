"""Guard a language model's answer at any depth with its own Safety Tokens (arXiv 2510.18081)."""

from anydepth.config import GuardConfig
from anydepth.detectors import Cascade, LinearProbe, RefusalMatcher, Rethink
from anydepth.errors import AnydepthError
from anydepth.guard import Guard
from anydepth.policy import Cusum, Ewma, KofN, Threshold
from anydepth.schedule import Adaptive, Every
from anydepth.types import (
    Answer,
    Checked,
    CheckResult,
    Finished,
    GateVerdict,
    Halted,
    Released,
    ScanResult,
    Score,
    Verdict,
)

__version__ = "0.1.0.dev0"

__all__ = [
    "Adaptive",
    "Answer",
    "AnydepthError",
    "Cascade",
    "CheckResult",
    "Checked",
    "Cusum",
    "Every",
    "Ewma",
    "Finished",
    "GateVerdict",
    "Guard",
    "GuardConfig",
    "Halted",
    "KofN",
    "LinearProbe",
    "RefusalMatcher",
    "Released",
    "Rethink",
    "ScanResult",
    "Score",
    "Threshold",
    "Verdict",
]
