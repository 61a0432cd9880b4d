"""Say how many benign answers a threshold may halt, by what it promises about others."""

import numpy as np

from anydepth.errors import ConfigError
from anydepth.extras import require
from anydepth.intervals import answers_needed, percent


def allowed_halts(target: float, answers: int) -> int:
    """The most answers that may halt for a rate of `target`: floor(target · answers), whatever the rounding of that."""
    count = round(target * answers)
    return count if count / answers <= target else count - 1


def guaranteed_halts(target: float, answers: int, confidence: float) -> int:
    """The most answers that may halt while the rate of others is shown to be at most `target`.

    Learn then Test (Angelopoulos et al., 2021, arXiv 2110.01052) with fixed-sequence testing: the thresholds above
    which 0, 1, 2, ... of the answers lie are tested from the strictest down. The hypothesis that is tested is that the
    rate is above the target; its exact p-value with k answers halted is that of the binomial distribution, P(X <= k).
    The first threshold whose p-value is above 1 - confidence ends the sequence, and the one before it holds: none of
    them needs a correction for the number of tests.

    Raises:
        ConfigError: Even the strictest threshold fails the test: there are too few answers.
        MissingExtra: scipy is not installed.
    """
    stats = require("scipy.stats", extra="fit")
    p_values = stats.binom.cdf(np.arange(allowed_halts(target, answers) + 1), answers, target)
    failed = np.flatnonzero(p_values > 1 - confidence)
    passed = int(failed[0]) if len(failed) else len(p_values)
    if not passed:
        raise ConfigError(
            f"a false-positive rate of at most {percent(target)} cannot be guaranteed with {percent(confidence)} "
            f"confidence from {answers} benign answers; give at least {answers_needed(target, confidence)}, or a "
            "larger target"
        )
    return passed - 1
