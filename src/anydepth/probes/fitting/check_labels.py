"""Say as what each check of an answer is trained on: harmful, benign or not at all."""

from collections.abc import Mapping

import numpy as np

from anydepth.probes.recipe.recipe_part import GRACE

LEFT_OUT = ""
"""The label of a check that is not trained on."""


def training_labels(columns: Mapping[str, np.ndarray], first_depth: int = 0) -> np.ndarray:
    """`harmful`, `benign` or LEFT_OUT of each check, str `[checks]`, from the facts of `Checks.columns`.

    It is the label of the answer, but

    - not at depths below `first_depth`, or below the part's own (column `first_depth`, where there is one);
    - where a harmful answer is harmful in one stretch only (columns `harm_begins` and `harm_ends`), the checks before
      the stretch are benign. Those in its first tokens (column `grace`, 20 without one) and those behind its end are
      left out: they see a little harm, or harm that is over.
    """
    depth = columns["depth"]
    labelled = np.isin(columns["label"], ("harmful", "benign"))
    deep = depth >= np.maximum(first_depth, columns.get("first_depth", 0))
    found = np.where(labelled & deep, columns["label"], LEFT_OUT)
    if "harm_begins" not in columns:
        return found
    begins, ends = columns["harm_begins"], columns["harm_ends"]
    in_part = (found == "harmful") & (begins >= 0)
    before = depth <= begins
    harmful = (depth >= begins + columns.get("grace", GRACE)) & (depth <= ends)
    found[in_part & ~harmful] = LEFT_OUT
    found[in_part & before] = "benign"
    return found


def weighed_sources(columns: Mapping[str, np.ndarray], trained: np.ndarray) -> np.ndarray:
    """The source by which each check is weighed, str `[checks]`, from its training label `trained`, str `[checks]`.

    It is the answer's own. But what stands before a harmful stretch, and is trained on as benign, is text of the host:
    it has the host's source (column `host_source`), so that it shares that source's weight and gets none of its own.
    """
    if "host_source" not in columns:
        return columns["source"]
    relabelled = (trained == "benign") & (columns["label"] == "harmful")
    return np.where(relabelled, columns["host_source"], columns["source"])
