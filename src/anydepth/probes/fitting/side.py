"""Hold the answers of one side of a comparison as a probe judges them, and as the request alone would."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anydepth.policy import Policy
from anydepth.probes.fitting.measure import rows_by_answer, trails
from anydepth.probes.fitting.request_control import RequestControl
from anydepth.probes.fitting.stretch_halts import stretch_halt
from anydepth.probes.states.store import Checks


@dataclass(frozen=True, slots=True)
class Side:
    """Some answers, by one array `[answers]` each.

    Attributes:
        peaks: Largest statistic of the policy over the answer, float64.
        halted: Whether the answer is halted, bool; before a harmful stretch a halt does not count.
        early: Whether it is halted before its harmful stretch, bool.
        starts: Log-odds of the control (`RequestControl`), which has seen the request alone, float64.
        halted_at_start: Whether the control halts, bool.
        prompts: Key of the answer's own prompt, str.
        hosts: Key of the prompt whose request is read, str; another one where the answer was put under it.
    """

    peaks: np.ndarray
    halted: np.ndarray
    early: np.ndarray
    starts: np.ndarray
    halted_at_start: np.ndarray
    prompts: np.ndarray
    hosts: np.ndarray

    def __len__(self) -> int:
        return len(self.peaks)


def side_of(
    checks: Checks,
    logits: np.ndarray,
    splits: Sequence[str],
    label: str,
    judges: tuple[Policy, RequestControl],
    *,
    first_depth: int = 0,
) -> Side:
    """The answers of `splits` with one label, judged from `first_depth` on; `logits` are float `[checks]`.

    Answers that end before `first_depth` are left out. `judges` are the policy and the control.

    Raises:
        StoreError: There are no such answers, or one was not read at depth 0.
    """
    policy, control = judges
    rows = rows_by_answer(checks, splits, label, first_depth=first_depth)
    firsts = np.array([each[0] for each in rows])
    found = [stretch_halt(policy, each) for each in trails(checks, logits, splits, label, first_depth=first_depth)]
    starts = control.starts(checks["answer"][firsts])
    return Side(
        np.array([each.peak for each in found]),
        np.array([each.halted for each in found]),
        np.array([each.early for each in found]),
        starts,
        starts >= control.threshold,
        checks["prompt_key"][firsts],
        checks.host_keys[firsts],
    )
