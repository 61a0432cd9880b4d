"""Feed embeddings in the place of tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from anydepth.backends.transformers.steer import edited_output
from anydepth.errors import UnsupportedModel


@contextmanager
def fed_instead(model: Any, embeddings: torch.Tensor | np.ndarray | None, positions: Sequence[int]) -> Iterator[None]:
    """Have the model see `embeddings` at some of the tokens that are fed from here on, whatever their ids are.

    The output of the embedding table is replaced, so that every way of feeding tokens does for it, and a gradient
    reaches `embeddings` if they are a tensor that asks for one. Nothing is changed where they are None.

    Args:
        model: The model.
        embeddings: What the embedding table would give, `[tokens, hidden_size]`.
        positions: Which tokens, counted from the first one that is fed inside the context (`steer.edited`): the first
            has the first of `embeddings`, and so on, again from the first one behind the last.

    Raises:
        UnsupportedModel: The model does not say which of its modules the embedding table is.
    """
    if embeddings is None:
        yield
        return
    table = model.get_input_embeddings()
    if not isinstance(table, torch.nn.Module):
        raise UnsupportedModel(
            f"{type(model).__name__} has no embedding table that can be found, so nothing can be fed but tokens; give "
            "a probe that reads the template's header"
        )
    rows = torch.from_numpy(np.array(embeddings)) if isinstance(embeddings, np.ndarray) else embeddings

    def edit(states: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
        return rows[[place % len(rows) for place in places]].to(states.device, states.dtype).expand_as(states)

    with edited_output(table, edit, positions):
        yield
