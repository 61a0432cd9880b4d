"""Check a finished answer on the cache that another session has left of the same text."""

from collections.abc import Sequence
from typing import Any

import torch

from anydepth.backends.protocol import Site
from anydepth.backends.transformers.branch import Branch
from anydepth.backends.transformers.kept_texts import KeptText
from anydepth.backends.transformers.passes import Passes
from anydepth.backends.transformers.replay_session import ReplaySession
from anydepth.templates.template import Prompt


class ResumedSession(ReplaySession):
    """A session of one row that feeds nothing: its cache is a fork of a kept text, as far as the two texts agree.

    What they do not share is run with each check, behind the fork.

    Args:
        passes: The model.
        prompt: What is answered, without a prefill.
        answer_ids: The answer, at least one token.
        kept: The text that was run.
        shared: How many tokens the two have in common, at least one.
    """

    def __init__(self, passes: Passes, prompt: Prompt, answer_ids: Sequence[int], kept: KeptText, shared: int) -> None:
        super().__init__(passes, [prompt], [answer_ids])
        self._source, self._held = kept, shared
        self._fork_before(self._prompt_length)

    def _fork_before(self, end: int) -> None:
        """Fork the kept text so that at least the last of the first `end` tokens is left to be fed."""
        self._cached = min(self._held, end - 1)
        self.cache = self._source.fork(self._cached)

    def _advance(self, n: int, sites: tuple[Site, ...] = ()) -> dict[Site, list[torch.Tensor]]:
        """Hand out `n` tokens of the answer; no state is seen."""
        done = self._ids.shape[1] - self._prompt_length
        self._append(self._answers[:, done : done + n])
        self._fork_before(self._ids.shape[1])
        self._forget()
        return {}

    def _branch_at_start(self, row: int, *, anew: bool = False) -> Branch:
        start = self._prompt_length
        held = 0 if anew else min(self._held, start - 1)
        cache: Any = self._source.fork(held) if held else None
        return Branch([0], cache, self._ids[:, held:start], self._mask[:, :held], self._ids[:, :held])
