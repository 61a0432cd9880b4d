"""Hold back what vLLM would send for one request, until it may leave."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_FIRST = ("new_prompt_logprobs_tensors", "prompt_token_id_logprobs", "prefill_stats", "ec_transfer_params")
"""Fields that come once and wait for the first output that leaves."""


@dataclass(slots=True)
class HeldOutput:
    """The outputs of one request, taken apart; which tokens may leave is for the flow to say.

    Attributes:
        logprobs: One row of log-probabilities per sampled token that has not left, in order.
        kept: Fields that go with the next output.
    """

    logprobs: deque[Any] = field(default_factory=deque)
    kept: dict[str, Any] = field(default_factory=dict)

    def hold(self, output: Any) -> None:
        """Take an output of vLLM apart and hold what may not leave yet."""
        if output.new_logprobs is not None:
            rows = range(len(output.new_token_ids))
            self.logprobs.extend(output.new_logprobs.slice_request(row, 1) for row in rows)
        if output.events:
            self.kept.setdefault("events", []).extend(output.events)
        for name in _FIRST:
            if (value := getattr(output, name)) is not None:
                self.kept.setdefault(name, value)
        if output.num_nans_in_logits:
            self.kept["num_nans_in_logits"] = output.num_nans_in_logits
        if output.trace_headers is not None:
            self.kept["trace_headers"] = output.trace_headers

    def take(self, count: int) -> dict[str, Any]:
        """Fields of the output that lets the next `count` tokens leave."""
        fields, self.kept = self.kept, {}
        if count and self.logprobs:
            fields["new_logprobs"] = _joined([self.logprobs.popleft() for _ in range(count)])
        return fields


def _joined(rows: list[Any]) -> Any:
    """One record of several: arrays end to end."""
    if len(rows) == 1:
        return rows[0]
    columns = [[row[place] for row in rows] for place in range(3)]
    return type(rows[0])(*(np.concatenate(column) for column in columns), None)
