"""Detectors turn a check into a score."""

from anydepth.detectors.card import ProbeCard
from anydepth.detectors.cascade import Cascade
from anydepth.detectors.detector import (
    Detector,
    LinearDetector,
    StateDetector,
    TextDetector,
    check_states,
    declares_reads,
    detector_parts,
    embeddings_of,
    require_capabilities,
    require_usable,
)
from anydepth.detectors.external_guard import ExternalGuard
from anydepth.detectors.finished import score_finished
from anydepth.detectors.named import cascade_without_probe, detector_named, detector_over
from anydepth.detectors.outside import OutsideDetector
from anydepth.detectors.probe import LinearProbe, find_shipped
from anydepth.detectors.refusals import RefusalMatcher
from anydepth.detectors.rethink import Rethink, calibrate_openers

__all__ = [
    "Cascade",
    "Detector",
    "ExternalGuard",
    "LinearDetector",
    "LinearProbe",
    "OutsideDetector",
    "ProbeCard",
    "RefusalMatcher",
    "Rethink",
    "StateDetector",
    "TextDetector",
    "calibrate_openers",
    "cascade_without_probe",
    "check_states",
    "declares_reads",
    "detector_named",
    "detector_over",
    "detector_parts",
    "embeddings_of",
    "find_shipped",
    "require_capabilities",
    "require_usable",
    "score_finished",
]
