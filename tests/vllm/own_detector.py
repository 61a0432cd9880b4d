"""A detector of a user's own, named in the settings as `tests.vllm.own_detector:Norms`; it is not linear."""

import numpy as np

from anydepth.backends.protocol import Capability, Read
from anydepth.detectors import check_states, require_capabilities
from anydepth.types import Score

READS = ("2.input_layernorm@2", "1.output@content", "2.input_layernorm@mean4", "1.mlp@mean")


class Norms:
    """Scores a check by the lengths of its states."""

    name = "norms"
    needs = frozenset({Capability.HIDDEN_STATES})
    reads = tuple(map(Read.parse, READS))

    def bind(self, backend):
        require_capabilities(self, backend)

    def check(self, session, points):
        return check_states(self, session, points)

    def score_each(self, states):
        return [Score(float(1 - np.exp(-np.linalg.norm(each) / 1000))) for each in np.asarray(states, np.float64)]
