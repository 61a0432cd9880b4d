"""Score finished answers with a detector that declares its reads: all depths of an answer in one packed pass."""

from collections.abc import Sequence

import numpy as np

from anydepth.backends.protocol import FinishedAnswer, Reader, sites_of
from anydepth.backends.trained_tokens import read_finished
from anydepth.detectors.detector import StateDetector, embeddings_of
from anydepth.types import Score


def score_finished(
    backend: Reader, detector: StateDetector, answers: Sequence[FinishedAnswer]
) -> list[list[Score | Exception]]:
    """Score each answer at each of its depths.

    Returns:
        For each answer one entry per depth, in the order of `FinishedAnswer.depths`: its score, or the CheckError that
        stands for a state that gave none.

    Raises:
        UnsupportedModel: The backend cannot read several depths in one pass; replay the answer there.
        CapabilityError: The detector has Safety Tokens of its own, which the backend cannot feed.
        PromptError: An answer does not fit the model's context.
    """
    sites = sites_of(detector.reads)
    tokens = sorted({read.token for read in detector.reads})
    found = []
    embeddings = embeddings_of(detector)
    for states in read_finished(backend, answers, sites, tokens=tokens, embeddings=embeddings):
        picked = [states[read.site][:, tokens.index(read.token)] for read in detector.reads]
        found.append(detector.score_each(np.stack(picked, axis=1)))
    return found
