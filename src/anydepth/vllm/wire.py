"""Name what travels between the scheduler and the worker, as one attribute of vLLM's own messages."""

from typing import Any

ATTRIBUTE = "anydepth"
"""Name of the attribute: of `SchedulerOutput` for `Orders`, of `ModelRunnerOutput` for `Findings`."""

OPENERS = -1
"""In place of the index of a read: the probability that the next token is one of the refusal openers."""

Key = tuple[str, int, int]
"""Request id, position in its tokens (from 0), and index of the read; index of the site where states are collected."""

Orders = dict[Key, int]
"""What the worker is to read in one step -> offset from the request's first token that the step computes."""

Findings = dict[Key, Any]
"""What the worker read: a float (a read's part of a linear detector's logit, or the probability of the openers), or a
state, float32 `[hidden_size]`."""
