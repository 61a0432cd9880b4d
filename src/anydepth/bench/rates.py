"""What this machine takes for the parts of a measurement, by the length of the conversation."""

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from anydepth.bench.timing import check_times, endless, filled, seconds
from anydepth.detectors import LinearProbe

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend

_LENGTH, _STEPS = 64, 4
_DOUBLES = 4096
"""Tokens beyond the longest measured length after which a part is guessed to take twice as long."""


@dataclass(frozen=True, slots=True)
class PartTimes:
    """Seconds of each part at one length.

    Attributes:
        length: Tokens of the conversation.
        prefill: One token of a prompt.
        step: One decode step.
        check: One check of the probe.
        naive: That check without any of our savings.
    """

    length: int
    prefill: float
    step: float
    check: float
    naive: float

    def at(self, length: int) -> "PartTimes":
        """A guess for another length."""
        factor = 1 + max(0, length - self.length) / _DOUBLES
        return PartTimes(length, *(each * factor for each in (self.prefill, self.step, self.check, self.naive)))


class Rates:
    """The rates that are known so far; each measurement at a new length adds one.

    Args:
        first: The rate that everything is estimated by at first.
    """

    def __init__(self, first: PartTimes) -> None:
        self._known = [first]

    def add(self, length: int, *, step: float, check: float, naive: float) -> None:
        """Note what was measured at `length` tokens."""
        guess = self.at(length)
        self._known.append(replace(guess, step=step, check=check, naive=naive))
        self._known.sort(key=lambda rate: rate.length)

    def at(self, length: int) -> PartTimes:
        """The rate at `length` tokens: from the longest one that is measured and not longer, or from the shortest."""
        shorter = [rate for rate in self._known if rate.length <= length]
        return (shorter[-1] if shorter else self._known[0]).at(length)


def first_rate(backend: "TransformersBackend", probe: LinearProbe) -> PartTimes:
    """Time each part once on a short conversation, after a round that does not count: the first pass is slow."""
    tokens, times = check_times(backend, {"check": probe}, _LENGTH, 2, steps=_STEPS)
    step, check, naive = (times[name][-1] for name in ("step", "check", "check, naive"))
    prompt = filled(backend, _LENGTH)
    with closing(backend.open([prompt], max_new_tokens=2, **endless(backend))) as session:
        prefill = seconds(lambda: session.decode(1)) / len(prompt.ids)
    return PartTimes(tokens, prefill, step, check, naive)
