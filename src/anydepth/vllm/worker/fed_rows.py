"""Have vLLM's model see trained Safety Tokens under the ids that stand for them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from anydepth.backends.trained_tokens import REMEDY
from anydepth.errors import UnsupportedModel
from anydepth.extras import require


def feed_instead(model: Any, ids: Sequence[int], embeddings: np.ndarray, *, compiled: bool) -> None:
    """Replace, from here on, what the embedding table gives for `ids` by `embeddings`.

    The table itself is left as it is: where it is the output layer as well, other rows would change the logits.

    Args:
        model: The loaded model.
        ids: Ids in a row, ascending.
        embeddings: What the table would give, float32 `[tokens, hidden_size]`; those beyond `ids` are not fed.
        compiled: Whether the model runs compiled or in captured graphs, where hooks are not called.

    Raises:
        UnsupportedModel: The model runs compiled, its embedding table cannot be told, or what it gives is changed
            before the first block, e.g. scaled: trained embeddings are what Transformers feeds to the first block.
    """
    if compiled:
        raise UnsupportedModel("trained Safety Tokens need eager mode; start vLLM with --enforce-eager")
    table = _table(model)
    weight = next(table.parameters())
    rows = torch.from_numpy(np.array(embeddings[: len(ids)])).to(weight.device, weight.dtype)

    seen: list[Any] = []

    def look_up(_module: Any, inputs: Any) -> Any:
        seen[:] = [inputs[0] - ids[0]]  # where in `rows` each token is, if it is there
        return (torch.where(seen[0] < 0, inputs[0], 0), *inputs[1:])  # an id may be the first one behind the table

    def replace(_module: Any, _inputs: Any, output: Any) -> Any:
        (places,) = seen
        fed = (places >= 0) & (places < len(rows))
        return torch.where(fed[:, None], rows[places.clamp(0, len(rows) - 1)].to(output.dtype), output)

    table.register_forward_pre_hook(look_up)
    table.register_forward_hook(replace)
    with torch.inference_mode():
        found = model.embed_input_ids(torch.tensor(list(ids), device=rows.device))
    if not torch.equal(found, rows.to(found.dtype)):
        raise UnsupportedModel(
            f"{type(model).__name__} does not feed to its blocks what its embedding table gives (it may be scaled), so "
            f"trained Safety Tokens would be others; {REMEDY}"
        )


def _table(model: Any) -> Any:
    layers = require("vllm.model_executor.layers.vocab_parallel_embedding", extra="vllm")
    found = [
        module
        for module in model.modules()
        if isinstance(module, layers.VocabParallelEmbedding) and not isinstance(module, layers.ParallelLMHead)
    ]
    if len(found) != 1:
        raise UnsupportedModel(
            f"{type(model).__name__} has {len(found)} embedding tables, so that trained Safety Tokens cannot be fed; "
            f"{REMEDY}"
        )
    return found[0]
