"""Say how sure a comparison is, by drawing its prompts anew: answers to one prompt are drawn together.

An answer under another request has two prompts, its own and the one that is read. It is drawn as often as the product
of the draws of both (the pigeonhole bootstrap; Owen, 2007), which makes an interval too wide rather than too narrow.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from anydepth.intervals import Interval, separation

RESAMPLES = 1000


class Keys(NamedTuple):
    """Which prompts some answers belong to, str `[answers]` each.

    Attributes:
        prompts: Key of the answer's own prompt.
        hosts: Key of the prompt whose request is read; another one where the answer was put under it.
    """

    prompts: np.ndarray
    hosts: np.ndarray


def draws(
    prompts: Sequence[np.ndarray],
    hosts: Sequence[np.ndarray] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[np.ndarray]:
    """How often each answer is drawn when prompts are drawn with replacement, as many as there are.

    Args:
        prompts: For each set of answers the keys of their prompts, str `[answers]`. A prompt that is in several sets is
            drawn for all of them together.
        hosts: The same for the prompts whose requests are read; by default those of the answers themselves.
        seed: Seed of the draws.
        resamples: Number of draws.

    Returns:
        For each set float32 `[resamples, answers]`.
    """
    own = np.concatenate(prompts)
    read = own if hosts is None else np.concatenate(hosts)
    names, both = np.unique(np.concatenate([own, read]), return_inverse=True)
    mine, theirs = np.split(both, 2)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples).astype(np.float32)
    drawn = counts[:, mine] * np.where(mine == theirs, np.float32(1), counts[:, theirs])
    return np.split(drawn, np.cumsum([len(each) for each in prompts])[:-1], axis=1)


def drawn_auroc(harmful: np.ndarray, benign: np.ndarray, drawn: Sequence[np.ndarray]) -> np.ndarray:
    """AUROC of each draw, float `[resamples]`: of scores `[harmful]` and `[benign]`; NaN where a side was not drawn."""
    wins = (harmful[:, None] > benign).astype(np.float32) + (harmful[:, None] == benign) / np.float32(2)
    of_harmful, of_benign = drawn
    with np.errstate(invalid="ignore"):
        return ((of_harmful @ wins) * of_benign).sum(1) / (of_harmful.sum(1) * of_benign.sum(1))


def auroc_with_interval(
    harmful: np.ndarray, benign: np.ndarray, of_harmful: Keys, of_benign: Keys
) -> tuple[float, Interval]:
    """AUROC of the scores `[harmful]` and `[benign]`, with its 95 % interval from drawing their prompts anew."""
    drawn = draws([of_harmful.prompts, of_benign.prompts], [of_harmful.hosts, of_benign.hosts])
    return float(separation(harmful, benign)), interval_of(drawn_auroc(harmful, benign, drawn))


def drawn_share(halted: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Share of the `halted` answers, bool `[answers]`, in each draw, float `[resamples]`; NaN if none was drawn."""
    with np.errstate(invalid="ignore"):
        return drawn @ halted.astype(np.float32) / drawn.sum(1)


def interval_of(values: np.ndarray) -> Interval:
    """The range of the middle 95 % of the draws, float `[resamples]`; NaN is left out."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return Interval(float(low), float(high))
