"""Run the header's tokens no further than the last site that is read, where rows cost time."""

from collections.abc import Sequence
from typing import Any

from anydepth.backends.protocol import Site
from anydepth.patches import VLLM_LINEAR


class HeaderRows:
    """Leaves the header's rows out of the matrix products of the blocks behind the last site.

    Nothing reads those rows any more: the sampler takes the logits of each request's last real token, and the header's
    cache slots are overwritten by the tokens that come next. Every product of a row is its own, so the other rows are
    not changed; attention still sees all rows, with zeros for those left out. Not for compiled graphs, whose shapes are
    fixed. Other modules than vLLM's linear ones (fused experts) compute all rows as before.

    Args:
        blocks: The model's blocks.
        sites: Where states are read.

    Attributes:
        first: The first block whose products leave rows out; the number of blocks if none is.
    """

    def __init__(self, blocks: Sequence[Any], sites: Sequence[Site]) -> None:
        self.first = max((site.block + (site.module != "input_layernorm") for site in sites), default=0)
        self._keep: Any = None
        self._rows = 0
        linear = VLLM_LINEAR.check().LinearBase
        for block in blocks[self.first :]:
            for module in block.modules():
                if isinstance(module, linear):
                    VLLM_LINEAR.replace(module, "forward", self._without_rows(module.forward))

    def begin(self, keep: Any, rows: int) -> None:
        """Say which rows the next pass needs to its end; `keep` is an int64 tensor `[kept]`, of `rows` in all."""
        self._keep, self._rows = keep, rows

    def end(self) -> None:
        """Compute all rows again."""
        self._keep = None

    def _without_rows(self, forward: Any) -> Any:
        def shortened(states: Any, *args: Any, **kwargs: Any) -> Any:
            if self._keep is None or len(states) != self._rows:
                return forward(states, *args, **kwargs)
            output = forward(states.index_select(0, self._keep), *args, **kwargs)
            if isinstance(output, tuple):  # (product, bias that is added elsewhere)
                return self._spread(output[0]), *output[1:]
            return self._spread(output)

        return shortened

    def _spread(self, kept: Any) -> Any:
        return kept.new_zeros((self._rows, *kept.shape[1:])).index_copy_(0, self._keep, kept)
