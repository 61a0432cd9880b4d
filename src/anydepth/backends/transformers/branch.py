"""A fork of some rows of a session, ready to be read or continued."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache


@dataclass(slots=True)
class Branch:
    """Some rows of a session on a cache of their own.

    Attributes:
        places: Which of the asked points these rows answer.
        cache: A fork that holds the states of the tokens before `tail`; None where there are none.
        tail: Tokens that belong to the text but are not in the cache yet, `[b, t]`.
        mask: 1 for tokens, 0 for padding, over the cached tokens `[b, cached]`.
        history: The cached tokens `[b, cached]`, which `generate` needs.
    """

    places: list[int]
    cache: Cache | None
    tail: torch.Tensor
    mask: torch.Tensor
    history: torch.Tensor

    @classmethod
    def fresh(cls, token_ids: Sequence[int], device: torch.device) -> "Branch":
        """A branch of one row with none of its tokens in a cache yet."""
        tail = torch.tensor([token_ids], device=device)
        return cls([0], None, tail, tail[:, :0], tail[:, :0])

    def append(self, token_ids: Sequence[int]) -> "Branch":
        """This branch with more tokens after the tail of every row."""
        more = torch.tensor([token_ids], dtype=torch.long, device=self.tail.device).expand(self.tail.shape[0], -1)
        return Branch(self.places, self.cache, torch.cat([self.tail, more], 1), self.mask, self.history)

    def spread(self, found: Iterable[Any], out: list[Any]) -> None:
        """Put what was found of each row where the point that it answers is, in `out`."""
        for place, each in zip(self.places, found, strict=True):
            out[place] = each

    @property
    def length(self) -> int:
        """How many columns the text has: padding, cached tokens and tail."""
        return self.mask.shape[1] + self.tail.shape[1]

    @property
    def whole_mask(self) -> torch.Tensor:
        """The mask over cached tokens and tail, `[b, cached + t]`."""
        return torch.cat([self.mask, torch.ones_like(self.tail)], 1)
