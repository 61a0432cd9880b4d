"""Detectors turn a check into a score."""

from anydepth.detectors.base import Detector, require_capabilities, require_usable
from anydepth.detectors.card import ProbeCard
from anydepth.detectors.cascade import Cascade
from anydepth.detectors.probe import LinearProbe, find_shipped
from anydepth.detectors.refusals import RefusalMatcher
from anydepth.detectors.rethink import Rethink, calibrate_openers

__all__ = [
    "Cascade",
    "Detector",
    "LinearProbe",
    "ProbeCard",
    "RefusalMatcher",
    "Rethink",
    "calibrate_openers",
    "find_shipped",
    "require_capabilities",
    "require_usable",
]
