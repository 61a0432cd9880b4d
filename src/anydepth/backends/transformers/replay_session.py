"""Feed finished answers through a session, so that they are checked exactly as they would have been while generated."""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from anydepth.backends.transformers.passes import Passes
from anydepth.backends.transformers.session import TransformersSession
from anydepth.templates.template import Prompt


class ReplaySession(TransformersSession):
    """A session whose tokens are given: each window is fed in one forward pass.

    As in a session that samples, a window ends for all rows where a live row ends.

    Args:
        passes: The model.
        prompts: One a row.
        answers: Tokens of each row, at least one, an end-of-turn token included.
        stopped: Whether each row ends its turn with its last token; without it a row runs out of tokens, as one that
            reached its limit.
        eos: The end-of-turn token of `answers`; by default the model's own.
    """

    def __init__(
        self,
        passes: Passes,
        prompts: Sequence[Prompt],
        answers: Sequence[Sequence[int]],
        stopped: Sequence[bool] | None = None,
        *,
        eos: int | None = None,
    ) -> None:
        options = {"stop_strings": None} | ({} if eos is None else {"eos_token_id": eos})
        super().__init__(passes, prompts, budget=max(map(len, answers)), seed=None, options=options)
        # A recurrent model is tried out when this is first asked: now, not while the hooks of a check are on.
        _ = passes.inputs.takes_chunks
        self._lengths = [len(answer) for answer in answers]
        self._stopped = list(stopped or [False] * len(answers))
        rows = [torch.tensor(answer, device=self._ids.device) for answer in answers]
        self._answers = pad_sequence(rows, batch_first=True, padding_value=passes.pad_id)

    def _generate(self, n: int) -> None:
        done = self._ids.shape[1] - self._prompt_length
        left = [length - done for row, length in enumerate(self._lengths) if self._rows[row].live and length > done]
        given = done + min([n, *left])
        begin = self._cached
        self._append(self._answers[:, done:given])
        if self.passes.inputs.starts_anew(begin, self._cached):  # as `generate` does
            self.cache, begin = self.passes.new_cache(self._prompt_length + self._budget, {}), 0
            self._forget()
        self.passes.feed(self._ids[:, begin : self._cached], self.cache, self._mask[:, : self._cached])
        self._ended = [
            stopped and length == given and row.live
            for row, length, stopped in zip(self._rows, self._lengths, self._stopped, strict=True)
        ]
