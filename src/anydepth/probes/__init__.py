"""Make probes: import published ones, fit and calibrate new ones."""

from anydepth.probes.artefact.joblib_import import import_joblib

__all__ = ["import_joblib"]
