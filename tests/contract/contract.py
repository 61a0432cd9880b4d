"""The contract that every family of models must keep, as functions that tests and the documentation share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from anydepth.backends.protocol import CONTENT, CheckPoint, Read, Session, Site
from anydepth.backends.transformers import TransformersBackend
from anydepth.backends.transformers.blocks import default_site
from anydepth.backends.transformers.read import read
from anydepth.driver import drive
from anydepth.flow import Outcome, Plan, Release, guarded
from anydepth.policy import Threshold
from anydepth.schedule import Every
from anydepth.templates.template import Prompt
from anydepth.types import Score
from tests import tiny

TOLERANCE = 1e-4
GREEDY = {"do_sample": False}
SAMPLED = {"do_sample": True, "temperature": 0.9, "top_k": 40}
MAX_NEW_TOKENS = 36
"""Enough to leave the sliding windows (24 tokens) and the chunks of the recurrent layers (16) behind."""


@dataclass
class Watcher:
    """A detector that reads a state at every check, keeps it and calls everything harmless."""

    site: Site
    read_index: int
    name: str = "watcher"
    needs: frozenset = frozenset()
    seen: list[tuple[CheckPoint, np.ndarray]] = field(default_factory=list)

    def bind(self, backend: Any) -> None:
        """Nothing to verify."""

    def check(self, session: Session, points: Sequence[CheckPoint]) -> list[Score]:
        """Read and keep."""
        states = session.hidden_states(points, [Read(self.site, self.read_index)])[:, 0]
        self.seen += zip(points, states, strict=True)
        return [Score(0.1) for _ in points]


@dataclass
class LooksAhead:
    """A detector that uses every kind of fork but reading: look-ahead and next-token probabilities."""

    name: str = "looks-ahead"
    needs: frozenset = frozenset()

    def bind(self, backend: Any) -> None:
        """Nothing to verify."""

    def check(self, session: Session, points: Sequence[CheckPoint]) -> list[Score]:
        """Look ahead twice, and say that all is well."""
        texts = session.look_ahead(points, 4, lambda text: False)
        assert session.next_token_logprobs(points).shape[0] == len(texts) == len(points)
        assert session.look_ahead(points, 4, lambda text: False) == texts
        return [Score(0.1) for _ in points]


def backend_of(family: str) -> TransformersBackend:
    """A tiny random model of `family` with its backend."""
    return TransformersBackend(tiny.tiny_model(family), tiny.tiny_tokenizer())


def prompt_of(backend: TransformersBackend, words: int = 7, prefill: str | None = "w11 w12 w13") -> Prompt:
    """A prompt of about `words` words."""
    return backend.template.prompt(" ".join(f"w{n}" for n in range(words)), prefill=prefill)


def run(
    backend: TransformersBackend, prompts: Sequence[Prompt], watcher: Watcher, *, seed: int | None = 3, **options: Any
) -> tuple[list[tuple[int, ...]], list[Outcome]]:
    """Guard answers to `prompts` with `watcher`; the released tokens and the outcomes."""
    plans = [Plan(Every(7), Threshold(), MAX_NEW_TOKENS, prefill=prompt.prefill) for prompt in prompts]
    session = backend.open(prompts, max_new_tokens=MAX_NEW_TOKENS, seed=seed, **options)
    released: list[tuple[int, ...]] = [() for _ in prompts]
    outcomes: dict[int, Outcome] = {}
    for row, step in drive([guarded(plan) for plan in plans], session, watcher):
        if isinstance(step, Release):
            released[row] += step.token_ids
        elif isinstance(step, Outcome):
            outcomes[row] = step
    session.close()
    errors = [check.error for outcome in outcomes.values() for check in outcome.checks if check.error]
    assert not errors, errors[0]
    return released, [outcomes[row] for row in range(len(prompts))]


def recomputed(
    backend: TransformersBackend, prompt: Prompt, answer: Sequence[int], depth: int, site: Site, read_index: int
) -> np.ndarray:
    """The state that a check at `depth` must read, from one full pass without any cache."""
    header = backend.header.ids[: read_index + 1]
    whole = [*prompt.ids[: prompt.start], *(*prompt.ids[prompt.start :], *answer)[:depth], *header]
    if depth == 0 and (index := backend.template.start_index(prompt, read_index)) is not None:
        whole = whole[: index + 1]
    ids = torch.tensor([whole])
    return read(backend.model, (site,), {"input_ids": ids, "use_cache": False})[site][0, -1].numpy()


def recomputed_read(
    backend: TransformersBackend, prompt: Prompt, answer: Sequence[int], depth: int, wanted: Read
) -> np.ndarray:
    """The state that one read at `depth` must give; `answer` begins with the prefill."""
    if wanted.token != CONTENT:
        question = Prompt(prompt.ids[: prompt.start])
        return recomputed(backend, question, answer, depth, wanted.site, wanted.token)
    start = backend.template.start_index(prompt, 0)
    end = prompt.start + depth if depth or start is None else start
    ids = torch.tensor([[*prompt.ids[: prompt.start], *answer][:end]])
    return read(backend.model, (wanted.site,), {"input_ids": ids, "use_cache": False})[wanted.site][0, -1].numpy()


def largest_difference(backend: TransformersBackend, prompt: Prompt, answer: Sequence[int], watcher: Watcher) -> float:
    """Largest difference between what the watcher read through forks and a full recompute."""
    return max(
        float(np.abs(state - recomputed(backend, prompt, answer, point.depth, watcher.site, watcher.read_index)).max())
        for point, state in watcher.seen
    )


def watcher_for(backend: TransformersBackend) -> Watcher:
    """A watcher at the model's default site and read token."""
    return Watcher(default_site(backend.model), backend.header.read_index)
