"""Say as what each check of an answer is trained on: harmful, benign or not at all."""

from collections.abc import Mapping

import numpy as np

LEFT_OUT = ""
"""The label of a check that is not trained on."""


def training_labels(columns: Mapping[str, np.ndarray], first_depth: int = 0) -> np.ndarray:
    """`harmful`, `benign` or LEFT_OUT of each check, str `[checks]`, from the facts of `Checks.columns`.

    It is the label of the answer, but not at depths below `first_depth`, or below the part's own (column `first_depth`,
    where there is one).
    """
    depth = columns["depth"]
    labelled = np.isin(columns["label"], ("harmful", "benign"))
    deep = depth >= np.maximum(first_depth, columns.get("first_depth", 0))
    return np.where(labelled & deep, columns["label"], LEFT_OUT)
