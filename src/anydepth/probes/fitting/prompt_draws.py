"""Say how sure a comparison is, by drawing its prompts anew: answers to one prompt are drawn together."""

from collections.abc import Sequence

import numpy as np

from anydepth.intervals import Interval

RESAMPLES = 1000


def draws(prompts: Sequence[np.ndarray], *, seed: int = 0, resamples: int = RESAMPLES) -> list[np.ndarray]:
    """How often each answer is drawn when prompts are drawn with replacement, as many as there are.

    Args:
        prompts: For each set of answers the keys of their prompts, str `[answers]`. A prompt that is in several sets is
            drawn for all of them together.
        seed: Seed of the draws.
        resamples: Number of draws.

    Returns:
        For each set float32 `[resamples, answers]`.
    """
    names, places = np.unique(np.concatenate(prompts), return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples).astype(np.float32)
    return [counts[:, part] for part in np.split(places, np.cumsum([len(each) for each in prompts])[:-1])]


def drawn_auroc(harmful: np.ndarray, benign: np.ndarray, drawn: Sequence[np.ndarray]) -> np.ndarray:
    """AUROC of each draw, float `[resamples]`: of scores `[harmful]` and `[benign]`; NaN where a side was not drawn."""
    wins = (harmful[:, None] > benign).astype(np.float32) + (harmful[:, None] == benign) / np.float32(2)
    of_harmful, of_benign = drawn
    with np.errstate(invalid="ignore"):
        return ((of_harmful @ wins) * of_benign).sum(1) / (of_harmful.sum(1) * of_benign.sum(1))


def drawn_share(halted: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Share of the `halted` answers, bool `[answers]`, in each draw, float `[resamples]`; NaN if none was drawn."""
    with np.errstate(invalid="ignore"):
        return drawn @ halted.astype(np.float32) / drawn.sum(1)


def interval_of(values: np.ndarray) -> Interval:
    """The range of the middle 95 % of the draws, float `[resamples]`; NaN is left out."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return Interval(float(low), float(high))
