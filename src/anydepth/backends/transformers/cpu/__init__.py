"""What makes a model faster on a CPU. `load` is the only caller.

`shared_heads` is for every model on a CPU. `number_format` and `operands` change last digits and are behind
`load(..., dtype="fast")`. Nothing here touches a model that a caller made, or the environment of the process.
"""

from typing import Any

import torch

from anydepth.backends.transformers.cpu.number_format import slow_on_this_cpu
from anydepth.backends.transformers.cpu.operands import faster_swapped, swap_operands
from anydepth.backends.transformers.cpu.shared_heads import share_heads as share_heads


def faster(model: Any) -> Any:
    """A model that was just loaded on a CPU, in the form that this CPU computes fastest.

    Args:
        model: A Transformers model that nobody else uses yet; its own layers may be exchanged.
    """
    if slow_on_this_cpu(model.dtype):
        model = model.float()
    if model.dtype == torch.float32 and faster_swapped():
        swap_operands(model)
    return model
