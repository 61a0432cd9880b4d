"""Lay out the pass that runs copies of the header behind several depths of a text whose cache is there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache

from anydepth.backends.protocol import CONTENT, FinishedAnswer
from anydepth.backends.transformers.blocks import text_config
from anydepth.backends.transformers.passes import Passes
from anydepth.templates.header import is_mean

TOKENS_A_PASS = 1024
"""Tokens in copies of the header of one text in one pass at most: bounds the mask's memory, which grows with this times
the context.
"""


@dataclass(frozen=True, slots=True)
class HeaderSuffix:
    """What stands behind a text at each depth, as far as it is read.

    Attributes:
        ids: Its tokens.
        own: Whether it is the template's header, which a prompt ends with.
        embeddings: What is fed in the place of its tokens, float32 `[tokens, hidden_size]`, if anything is.
    """

    ids: tuple[int, ...]
    own: bool
    embeddings: np.ndarray | None

    @classmethod
    def of(
        cls, passes: Passes, tokens: Sequence[int], suffix: Sequence[int] | None, embeddings: np.ndarray | None
    ) -> "HeaderSuffix":
        """The template's header, or `suffix` or `embeddings` in its place, up to the last of `tokens`."""
        given = suffix if embeddings is None else passes.stand_ins(embeddings)
        ids = tuple(passes.header.ids if given is None else given)[: max((*tokens, CONTENT)) + 1]
        return cls(ids, given is None, None if embeddings is None else embeddings[: len(ids)])


def copies(
    passes: Passes,
    cache: Cache,
    ends: torch.Tensor,
    header: tuple[int, ...],
    length: int,
    rest: tuple[int, ...] = (),
    again: Sequence[tuple[int, int]] = (),
) -> dict[str, Any]:
    """Arguments of the pass that runs, in each row, a copy of the header per entry of `ends` over `length` tokens.

    Args:
        passes: The model.
        cache: Holds the text, but for `rest`.
        ends: Behind how many tokens of its row's text each copy stands, `[rows, copies]`.
        header: The header's ids.
        length: How many tokens the text has.
        rest: The last tokens of the text, if they are run in this pass too. They come first in it.
        again: Positions and ids of tokens that the cache holds and whose states are wanted. They come second.
    """
    device, rows = passes.model.device, len(ends)
    width, count, begin = len(header), ends.shape[1], length - len(rest)
    # what stands behind the text by groups: each token that is run again is one, each copy of the header is one
    alone = torch.tensor([position for position, _ in again], dtype=torch.long, device=device)
    group = torch.cat([-1 - alone, torch.arange(count, device=device).repeat_interleave(width)])
    within = torch.cat([torch.zeros_like(alone), torch.arange(width, device=device).repeat(count)])
    behind = torch.cat([alone.expand(rows, -1), ends.to(device).repeat_interleave(width, 1)], 1)
    text = torch.arange(length, device=device).expand(rows, -1)
    positions = torch.cat([text[:, begin:], behind + within], 1)
    sees_text = text[:, None, :] < torch.cat([text[:, begin:] + 1, behind], 1)[:, :, None]
    sees_group = (group[None, :] == group[:, None]) & (within[None, :] <= within[:, None])
    sees_group = torch.cat([sees_group.new_zeros(len(rest), len(group)), sees_group])
    seen = torch.cat([sees_text, sees_group.expand(rows, -1, -1)], 2)
    distance = positions[:, :, None] - torch.cat([text, positions[:, len(rest) :]], 1)[:, None, :]
    ids = [*rest, *(token for _, token in again), *header * count]
    arguments: dict[str, Any] = {
        "input_ids": torch.tensor([ids] * rows, device=device),
        "attention_mask": _masks(passes, seen, distance),
        passes.inputs.cache_name: cache,
        "use_cache": True,
    }
    if passes.inputs.takes_positions:
        arguments["position_ids"] = positions
    return arguments


def _masks(passes: Passes, seen: torch.Tensor, distance: torch.Tensor) -> Any:
    """An additive mask `[b, 1, new, all]`, or one per layer type where the model has several."""
    config, dtype = text_config(passes.model), passes.model.dtype

    def additive(allowed: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]

    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    near = seen if window is None else seen & (distance < window)
    if kinds == {"sliding_attention"} or (not kinds and window is not None):
        return additive(near)
    if "sliding_attention" in kinds:
        return {"full_attention": additive(seen), "sliding_attention": additive(near)}
    return additive(seen)


def text_of(answer: FinishedAnswer) -> tuple[int, ...]:
    """The tokens of question and answer, up to the deepest depth."""
    return (*answer.prompt.ids[: answer.prompt.start], *answer.answer_ids[: answer.deepest])


def of_text(passes: Passes, answer: FinishedAnswer, tokens: Sequence[int], own: bool) -> Iterator[tuple[int, int, int]]:
    """What is read of the text itself but means: places among the depths and the tokens, and the position.

    It is the last token before the header and, at depth 0, the header, which the prompt ends with; with another suffix
    (not `own`) the former only.
    """
    for place, depth in enumerate(answer.depths):
        for index, token in enumerate(tokens):
            if is_mean(token) or (token != CONTENT and (depth or not own)):
                continue  # a mean, or in a copy of the header
            position = passes.template.position(answer.prompt, token, depth) if own else answer.prompt.start + depth - 1
            if position is not None:
                yield place, index, position
