"""Make probes: collect hidden states, fit and calibrate new ones, import published ones."""

from anydepth.probes.calibrate import Calibration, Trail, calibrate, recalibrated
from anydepth.probes.collect import Collected, collect, manifest_for
from anydepth.probes.fit import FitOptions, Fitted, fit
from anydepth.probes.intervals import Interval, Rate, auroc, clopper_pearson
from anydepth.probes.joblib_import import import_joblib
from anydepth.probes.onpolicy import AnswerOptions, Written, load_answers, write_answers
from anydepth.probes.operating import OperatingPoint, PrefillPoint, from_prefill, operating_point
from anydepth.probes.plan import CollectPlan
from anydepth.probes.recipe import Gathered, Recipe, gather, read_recipe
from anydepth.probes.store import Checks, Manifest, StateStore

__all__ = [
    "AnswerOptions",
    "Calibration",
    "Checks",
    "CollectPlan",
    "Collected",
    "FitOptions",
    "Fitted",
    "Gathered",
    "Interval",
    "Manifest",
    "OperatingPoint",
    "PrefillPoint",
    "Rate",
    "Recipe",
    "StateStore",
    "Trail",
    "Written",
    "auroc",
    "calibrate",
    "clopper_pearson",
    "collect",
    "fit",
    "from_prefill",
    "gather",
    "import_joblib",
    "load_answers",
    "manifest_for",
    "operating_point",
    "read_recipe",
    "recalibrated",
    "write_answers",
]
