"""Turn the outputs of blocks, which is what SGLang returns, into the states of a probe's sites."""

import inspect
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from anydepth.backends.checkpoint_identity import block_vectors
from anydepth.backends.protocol import Read, Site, require_no_means
from anydepth.backends.transformers.blocks import find_blocks, find_module
from anydepth.errors import CheckError, UnsupportedModel
from anydepth.reasons import reason
from anydepth.templates.template import Prompt

WHO = "the SGLang backend"

Place = tuple[Prompt, Sequence[int], int]
"""Where a check reads: a prompt, the tokens of its answer, and the depth."""

logger = logging.getLogger(__name__)


def tokens_of(reads: Sequence[Read]) -> tuple[int, ...]:
    """The tokens that `reads` are of, as `Read.token`; CapabilityError if one of them is a mean."""
    require_no_means(reads, WHO)
    return tuple(dict.fromkeys(read.token for read in reads))


def layer_of(site: Site) -> int:
    """The block whose output is `site` itself, or what its norm is applied to."""
    return site.block if site.module == "output" else site.block - 1


class ServedStates:
    """The sites of one model whose states can be made of the outputs of its blocks.

    Those are a block's `output`, and the norm that a block begins with: it is applied here, by the Transformers class
    of the model with the checkpoint's weights, in float32. Several threads may ask at once.

    Args:
        skeleton: The model on PyTorch's meta device: its modules, without weights.
        folder: The checkpoint's files, or None if they are not on this machine.
        width: The model's hidden size.
    """

    def __init__(self, skeleton: Any, folder: Path | None, width: int) -> None:
        self._skeleton, self._folder, self._width = skeleton, folder, width
        self._weights: dict[Site, dict[str, torch.Tensor]] = {}
        self._lock = threading.Lock()  # `functional_call` exchanges the skeleton's weights while it runs

    def check_site(self, site: Site) -> None:
        """Raise UnsupportedModel unless the states of `site` can be made."""
        module = find_module(self._skeleton, site)
        if site.module == "output":
            return
        if site.block == 0:
            raise UnsupportedModel(f"site {site} lies before the first block, and SGLang returns outputs of blocks")
        with self._lock:
            if site not in self._weights:
                self._require_at_the_beginning(site, module)
                self._weights[site] = self._load(site, module)

    def states(self, values: Sequence[Any], layers: Sequence[int], sites: Sequence[Site]) -> np.ndarray:
        """The states of one token, float32 `[len(sites), hidden_size]`.

        Args:
            values: Numbers that the server returned: the outputs of the blocks `layers`, one after the other.
            layers: The blocks, in their order.
            sites: Which states to make.

        Raises:
            CheckError: There are too few or too many numbers, or one is not finite.
        """
        want = len(layers) * self._width
        try:
            found = np.asarray(values, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise CheckError(f"the server's hidden state is no list of numbers: {reason(error)}") from error
        if found.shape != (want,):
            raise CheckError(
                f"the server's hidden state has the shape {list(found.shape)}, not [{want}]: {len(layers)} layers of "
                f"width {self._width}; is it another model?"
            )
        if not np.isfinite(found).all():
            raise CheckError("the server's hidden state is not finite")
        outputs = dict(zip(layers, found.reshape(len(layers), self._width), strict=True))
        return np.stack([self._apply(site, outputs[layer_of(site)]) for site in sites])

    def _apply(self, site: Site, output: np.ndarray) -> np.ndarray:
        self.check_site(site)
        if site.module == "output":
            return output
        module, states = find_module(self._skeleton, site), torch.from_numpy(output.copy())[None, None]
        with self._lock, torch.no_grad():
            return functional_call(module, self._weights[site], (states,))[0, 0].float().numpy()

    def _require_at_the_beginning(self, site: Site, module: nn.Module) -> None:
        """UnsupportedModel unless the first thing that the block does with its input is to give it to the module."""
        block, states = find_blocks(self._skeleton)[site.block], torch.empty(1, 1, self._width, device="meta")

        def stop(_module: nn.Module, args: Any, kwargs: Any) -> None:
            raise _Reached(args[0] if args else kwargs.get("hidden_states"))

        with module.register_forward_pre_hook(stop, with_kwargs=True):
            try:
                block(states, **dict.fromkeys(_required(block)))
            except _Reached as reached:
                if reached.states is states:
                    return
            except Exception as error:  # the block did something else first, for which it lacks values
                logger.debug("block %d fails before it reaches %s: %r", site.block, site, error)
        raise UnsupportedModel(
            f"site {site} is not the norm that block {site.block} begins with, and SGLang returns outputs of blocks "
            "only; give a probe that reads input_layernorm or output"
        )

    def _load(self, site: Site, module: nn.Module) -> dict[str, torch.Tensor]:
        """The weights of one norm, float32, by their names in the module."""
        keys = {name: f"{site.block:04d}.{site.module}.{name}" for name, _ in module.named_parameters()}
        table = self._skeleton.get_input_embeddings().weight.shape
        found = {"layers": len(find_blocks(self._skeleton)), "embeddings": (table[0], self._width)}
        vectors = {} if self._folder is None else block_vectors(self._folder, **found)
        if lacking := [key for key in keys.values() if key not in vectors]:
            raise UnsupportedModel(
                f"the weights of {site} ({', '.join(lacking)}) are not in the checkpoint's safetensors files; give "
                "the folder that the server's model was loaded from"
            )
        return {name: vectors[key].float() for name, key in keys.items()}


class _Reached(Exception):
    """Ends a block's forward pass where a module is called; `states` is what it was given."""

    def __init__(self, states: Any) -> None:
        super().__init__("reached")
        self.states = states


def _required(block: nn.Module) -> list[str]:
    """The arguments of a block, but for its states, that must be given."""
    parameters = list(inspect.signature(block.forward).parameters.values())[1:]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [each.name for each in parameters if each.kind in named and each.default is inspect.Parameter.empty]
