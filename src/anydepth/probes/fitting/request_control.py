"""Predict an answer's label from depth 0 alone, where a check has seen the request and nothing of the answer.

The score of the probe itself at depth 0 is no such control: a mean over answer tokens is zero there, whatever the
request says, and a policy that needs several checks never halts at one. So a probe of its own is fitted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anydepth.backends.protocol import CONTENT, Read
from anydepth.errors import ConfigError, StoreError
from anydepth.probes.fitting.candidates import Candidate, Used, states_of
from anydepth.probes.fitting.contract import allowed_halts, guaranteed_halts
from anydepth.probes.fitting.fit import FitOptions, Fitted, fit
from anydepth.probes.recipe.choices import Choices
from anydepth.probes.recipe.recipe_part import TRAIN
from anydepth.probes.states.sites import is_before_the_model
from anydepth.probes.states.store import Checks, Manifest, StateStore

_OF_ANSWERS = ("first_depth", "harm_begins", "harm_ends", "grace")


@dataclass(frozen=True, slots=True)
class RequestControl:
    """What the request alone says of each answer that was read at depth 0.

    Attributes:
        logits: Answer key -> log-odds that the answer is harmful.
        threshold: The control halts answers whose log-odds reach it; set on the benign answers that the probe's own
            threshold is set on, for the same target.
        reads: The states that it reads.
    """

    logits: Mapping[str, float]
    threshold: float
    reads: tuple[Read, ...] = ()

    def starts(self, answers: np.ndarray) -> np.ndarray:
        """The log-odds of some answers, float64 `[answers]`, from their keys, str `[answers]`.

        Raises:
            StoreError: One was not read at depth 0.
        """
        if missing := [str(key) for key in answers if str(key) not in self.logits]:
            raise StoreError(
                f"answer {missing[0]} has no check at depth 0, where the request alone is judged; collect it there"
            )
        return np.array([self.logits[str(key)] for key in answers])

    def record(self) -> dict[str, Any]:
        """JSON-ready form, without the single answers."""
        return {"reads": [str(read) for read in self.reads], "threshold": self.threshold}


def control_reads(manifest: Manifest, reads: Sequence[Read]) -> tuple[Read, ...]:
    """What the control of a probe that reads `reads` reads: those of them that are no means.

    Of a probe of means alone it is the last header token that was collected, at the same sites; at another collected
    site if these lie before the model, where that token's state is always the same.

    Raises:
        ConfigError: No state that depends on the request was collected at depth 0.
    """
    found = tuple(read for read in reads if not read.is_mean and _varies(read))
    if found:
        return found
    last = max((token for token in manifest.tokens if token >= CONTENT), default=None)
    sites = list(dict.fromkeys([*(read.site for read in reads), *reversed(manifest.sites)]))
    usable = [] if last is None else [Read(site, last) for site in sites if _varies(Read(site, last))]
    if not usable:
        raise ConfigError(
            f"the control of a probe at {', '.join(map(str, reads))} needs a state that the request changes, and none "
            "was collected; collect a header token at a block from 1 on"
        )
    mine = {read.site for read in reads}
    return tuple(read for read in usable if read.site in mine) or (usable[0],)


def _varies(read: Read) -> bool:
    return not (is_before_the_model(read.site) and read.token >= 0)


def request_control(
    store: StateStore,
    used: Mapping[str, Used],
    candidate: Candidate,
    checks: Checks,
    calibrated: np.ndarray,
    choices: Choices,
) -> RequestControl:
    """Fit the control of a candidate on the checks at depth 0 of the training answers.

    Args:
        store: The states.
        used: Answer key -> what the data says of it.
        candidate: The probe's reads and options; the control is fitted with the same strength, balance and method.
        checks: All checks of the candidate's reads.
        calibrated: Keys of the answers that the probe's threshold is set on, str.
        choices: The benign sets, the target and the contract of that threshold.

    Raises:
        StoreError: There are no checks at depth 0 to fit on, or their states are all the same.
        ConfigError: No state that depends on the request was collected, or the contract needs more answers.
    """
    reads = control_reads(store.manifest, candidate.reads)
    start = checks.where(checks["depth"] == 0)
    if set(reads) <= set(candidate.reads):
        start = replace(start, states=start.states[:, [candidate.reads.index(read) for read in reads]])
    else:
        start = states_of(store, reads, used)
        start = start.where(start["depth"] == 0)
    options = replace(candidate.options, first_depth=0, clean=0.0, bags=1)
    logits = fit_on_requests(start.where(start["split"] == TRAIN), options).logits(start.states)
    benign = np.isin(start["answer"], calibrated) & (start["label"] == "benign")
    spared = np.sort(logits[benign & np.isin(start["split"], list(choices.benign))])[::-1]
    if not len(spared):
        raise StoreError(
            f"no benign answers of {', '.join(choices.benign)} were read at depth 0, where the control of the request "
            "alone is calibrated; collect them there"
        )
    sure = choices.contract == "guarantee"
    allowed = (
        guaranteed_halts(choices.target, len(spared), choices.confidence)
        if sure
        else allowed_halts(choices.target, len(spared))
    )
    by_answer = dict(zip(start["answer"].tolist(), logits.tolist(), strict=True))
    return RequestControl(by_answer, float(np.nextafter(spared[allowed], np.inf)), reads)


def fit_on_requests(start: Checks, options: FitOptions) -> Fitted:
    """Fit on training checks at depth 0, each with the label of its whole answer.

    Those are used whose request says something of the answer: answers under their own request, of parts with
    `first_depth` 0. Where these lack a label, all under their own request are used, and then all there are.

    Raises:
        StoreError: There are no checks of one of the labels.
    """
    own = start.host_keys == start["prompt_key"]
    first = start.columns.get("first_depth", np.zeros(len(start), int)) == 0
    plain = replace(start, columns={name: c for name, c in start.columns.items() if name not in _OF_ANSWERS})
    masks = (own & first, own)
    chosen = next((mask for mask in masks if {"harmful", "benign"} <= set(plain["label"][mask].tolist())), None)
    return fit(plain if chosen is None else plain.where(chosen), options)
