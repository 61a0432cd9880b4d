"""Make probes: collect hidden states, fit and calibrate new ones, import published ones."""

from anydepth.intervals import Interval, Rate, auroc, clopper_pearson
from anydepth.probes.artefact.joblib_import import import_joblib
from anydepth.probes.fitting.calibrate import Calibration, Trail, calibrate, recalibrated
from anydepth.probes.fitting.fit import FitOptions, Fitted, fit
from anydepth.probes.fitting.operating import OperatingPoint, PrefillPoint, from_prefill, operating_point
from anydepth.probes.recipe.own_answers import AnswerOptions, Written, load_answers, write_answers
from anydepth.probes.recipe.recipe import Gathered, Recipe, gather, read_recipe
from anydepth.probes.states.collect import Collected, collect, manifest_for
from anydepth.probes.states.plan import CollectPlan
from anydepth.probes.states.store import Checks, Manifest, StateStore

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
