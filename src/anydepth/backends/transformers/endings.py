"""Stop a window of a batch as soon as one of its live rows ends, and remember which did."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StopStringCriteria


class Endings(StoppingCriteria):
    """Stops all rows when a live row ends: the row is then checked while the cache is exactly at its end.

    Transformers' own loop stops a batch when *all* rows have ended and pads the others; a padded row cannot be checked
    at its last token where the cache cannot be rewound (recurrent layers).

    Args:
        end_tokens: Ids that end a turn.
        criteria: Stopping criteria of the caller's, which see the text from its beginning.
        live: Whether each row may still end.
        before: Tokens `[batch, t]` that `generate` is not given again; none where it takes the whole text.
    """

    def __init__(
        self, end_tokens: frozenset[int], criteria: Sequence[Any], live: Sequence[bool], before: torch.Tensor
    ) -> None:
        self._end_tokens = torch.tensor(sorted(end_tokens), device=before.device, dtype=torch.long)
        self._criteria, self._before = criteria, before
        self._live = torch.tensor(live, device=before.device)
        self.ended = torch.zeros_like(self._live)

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> Any:
        """Bool `[batch]`: all True once a live row has ended."""
        ended = torch.isin(input_ids[:, -1], self._end_tokens)
        text = torch.cat([self._before, input_ids], 1) if self._criteria else input_ids
        for criterion in self._criteria:
            ended = ended | criterion(text, scores, **kwargs).to(ended.device)
        # The first row to end decides: on Apple's GPUs the library looks one token late, and takes that token back.
        self.ended = torch.where(self.ended.any(), self.ended, ended & self._live)
        return self.ended.any().expand(input_ids.shape[0])


def take_criteria(options: dict[str, Any], defaults: GenerationConfig, tokenizer: Any) -> list[Any]:
    """The criteria that end a row by its text; takes `stopping_criteria` and `stop_strings` out of `options`."""
    strings = options.get("stop_strings", defaults.stop_strings)
    options["stop_strings"] = None  # `generate` would want the tokenizer, and take the model's own
    criteria: list[Any] = list(options.pop("stopping_criteria", None) or ())
    if strings:
        criteria.append(StopStringCriteria(tokenizer, strings))
    return criteria
