"""Keep the states of answer tokens as they are fed, and take means over the last of them.

A column is a place in the padded text that the rows of a session have in common; a branch of one row begins at 0.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from anydepth.backends.protocol import Site
from anydepth.errors import CheckError, UnsupportedModel
from anydepth.templates.header import mean_divisor


class AnswerStates:
    """States of the answers of a session, `[rows, columns, hidden_size]` per site, from one column on.

    They stay in the number format and on the device of the model: in bf16, 8 KiB a token, row and site where the
    hidden size is 4096, so 32 MiB for an answer of 4096 tokens.

    Args:
        sites: Where means are read.
        first: The first column that belongs to an answer; those before it are not kept.
        takes_back: Whether the library may feed one token at the end of a decode and take it back again, as it does on
            Apple's GPUs.

    Attributes:
        end: How many columns of the text have been seen.
        takes_back: As it was given.
    """

    def __init__(self, sites: Iterable[Site], first: int, *, takes_back: bool = False) -> None:
        self._parts: dict[Site, list[torch.Tensor]] = {site: [] for site in sites}
        self._first, self.takes_back, self.end = first, takes_back, 0

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites whose states are kept."""
        return tuple(self._parts)

    @property
    def first(self) -> int:
        """The first column that is kept."""
        return self._first

    def snapshot(self) -> "AnswerStates":
        """What is kept now; what is added later, or cleared, does not change it."""
        twin = copy.copy(self)
        twin._parts = {site: list(parts) for site, parts in self._parts.items()}
        return twin

    def clear(self) -> None:
        """Forget all columns, so that they can be seen anew."""
        self._parts, self.end = {site: [] for site in self._parts}, 0

    def add(self, seen: Mapping[Site, Sequence[torch.Tensor]], end: int) -> None:
        """Keep the states of the columns from `self.end` up to `end`, one tensor a forward pass.

        Raises:
            UnsupportedModel: There are states of fewer columns, so a pass was made in which the site did not run, or
                of more, so the site ran more than once in a pass. Only a token that is taken back is left out.
        """
        if end == self.end:
            return
        for site, parts in self._parts.items():
            passes, wanted = list(seen[site]), end - self.end
            got = sum(each.shape[1] for each in passes)
            if self.takes_back and got == wanted + 1 and passes[-1].shape[1] == 1:
                passes, got = passes[:-1], wanted
            if got != wanted:
                why = "it runs more than once in a pass, " if got > wanted else ""
                raise UnsupportedModel(
                    f"site {site} ran on {got} of {wanted} tokens, {why}so no mean over the answer can be read there; "
                    "read another site, and decode without compiling (disable_compile=True)"
                )
            states = torch.cat(passes, 1)
            # a copy: a slice would keep the states of the whole prompt
            parts.append(states[:, max(self._first - self.end, 0) :].clone())
            _merge(parts)
        self.end = end

    def parts(self, site: Site, row: int, begin: int, end: int) -> list[torch.Tensor]:
        """The states of one row in the columns from `begin` to `end`, `[n, hidden_size]` each, in their order."""
        found, at = [], self._first
        for part in self._parts[site]:
            found.append(part[row, max(begin - at, 0) : max(end - at, 0)])
            at += part.shape[1]
        return found


def _merge(parts: list[torch.Tensor]) -> None:
    """Join short parts to one, so that there are few: their number grows with the logarithm of the columns."""
    while len(parts) > 1 and parts[-1].shape[1] >= parts[-2].shape[1]:
        last = parts.pop()
        parts[-1] = torch.cat([parts[-1], last], 1)


@dataclass(frozen=True, slots=True)
class AnswerSpan:
    """Where the answers in the rows of a branch begin, and what is kept of their states.

    Attributes:
        starts: The column of each row's first answer token.
        rows: Which rows of `kept` these are.
        kept: The states of the columns before the branch's tail; None where the tail holds the answers whole.
    """

    starts: tuple[int, ...]
    rows: tuple[int, ...] = ()
    kept: AnswerStates | None = None

    def means(self, site: Site, token: int, tail: torch.Tensor | None, end: int) -> torch.Tensor:
        """The mean of each row's last `-token` answer tokens, float32 `[b, hidden_size]`; zeros for an empty answer.

        Args:
            site: Where the states are from.
            token: A mean, as `Read.token` has it.
            tail: States of the branch's tail, `[b, t, hidden_size]`; None if it has no token.
            end: The column behind the answers.

        Raises:
            CheckError: The states of some of these tokens are not there.
        """
        return torch.stack([self._mean(place, site, token, tail, end) for place in range(len(self.starts))])

    def _mean(self, place: int, site: Site, token: int, tail: torch.Tensor | None, end: int) -> torch.Tensor:
        begin = max(self.starts[place], end + token)
        parts = [] if self.kept is None else self.kept.parts(site, self.rows[place], begin, end)
        if tail is not None:
            at = end - tail.shape[1]
            fresh = at if self.kept is None else self.kept.end  # what is kept may be in the tail once more
            parts.append(tail[place, max(begin, fresh, at) - at :])
        if (there := sum(map(len, parts))) != end - begin:
            raise CheckError(f"{there} of the {end - begin} states of a mean at {site} are kept; open the answer anew")
        sums = torch.stack([part.sum(0, dtype=torch.float32) for part in parts])
        return sums.sum(0) / mean_divisor(token, end - self.starts[place])


def mean_states(states: torch.Tensor, token: int, depths: Sequence[int]) -> torch.Tensor:
    """Means over the states of one answer, `[answer, hidden_size]`, at several depths: float32 `[depths, hidden_size]`.

    `token` is a mean, as `Read.token` has it.
    """
    deep = max(depths, default=0)
    sums = states[:deep].cumsum(0, dtype=torch.float32)
    found = sums.new_zeros(len(depths), states.shape[-1])
    for place, depth in enumerate(depths):
        if 0 < depth <= -token:
            found[place] = sums[depth - 1] / mean_divisor(token, depth)
        elif depth:  # summed anew: a difference of two long sums would lose digits
            found[place] = states[depth + token : depth].sum(0, dtype=torch.float32) / -token
    return found
