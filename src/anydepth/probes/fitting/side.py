"""Hold the answers of one side of a comparison as a probe judges them: with all their checks, and by depth 0 alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anydepth.errors import StoreError
from anydepth.policy import Policy
from anydepth.probes.fitting.calibrate import first_halt, peak
from anydepth.probes.fitting.measure import rows_by_answer
from anydepth.probes.states.store import Checks


@dataclass(frozen=True, slots=True)
class Side:
    """Some answers, by one array `[answers]` each.

    Attributes:
        peaks: Largest statistic of the policy over the answer, float64.
        halted: Whether the answer is halted, bool.
        starts: Score of the check at depth 0, float64: what the probe says of the request alone.
        halted_at_start: Whether that check alone halts, bool.
        prompts: Key of the answer's own prompt, str.
        hosts: Key of the prompt whose request is read, str; another one where the answer was put under it.
    """

    peaks: np.ndarray
    halted: np.ndarray
    starts: np.ndarray
    halted_at_start: np.ndarray
    prompts: np.ndarray
    hosts: np.ndarray

    def __len__(self) -> int:
        return len(self.peaks)


def side_of(
    checks: Checks, logits: np.ndarray, splits: Sequence[str], label: str, policy: Policy, *, first_depth: int = 0
) -> Side:
    """The answers of `splits` with one label, judged from `first_depth` on; `logits` are float `[checks]`.

    Answers that end before `first_depth` are left out.

    Raises:
        StoreError: There are no such answers, or one was not read at depth 0.
    """
    scores = np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))
    rows = [(every[0], every[checks["depth"][every] >= first_depth]) for every in rows_by_answer(checks, splits, label)]
    rows = [(start, deep) for start, deep in rows if len(deep)]
    if not rows:
        raise StoreError(f"no answers of {', '.join(splits)} that are {label} have checks from depth {first_depth} on")
    firsts = np.array([start for start, _ in rows])
    if checks["depth"][firsts].any():
        raise StoreError(
            f"an answer of {', '.join(splits)} has no check at depth 0, where the request alone is judged; collect it "
            "there"
        )
    series = [scores[deep].tolist() for _, deep in rows]
    starts = scores[firsts]
    return Side(
        np.array([peak(policy, each) for each in series]),
        np.array([first_halt(policy, each) is not None for each in series]),
        starts,
        np.array([first_halt(policy, [each]) is not None for each in starts.tolist()]),
        checks["prompt_key"][firsts],
        checks.host_keys[firsts],
    )
