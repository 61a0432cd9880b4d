"""Read hidden states out of vLLM's model while it runs."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from anydepth.backends.protocol import Site
from anydepth.errors import UnsupportedModel
from anydepth.extras import require
from anydepth.vllm.additional_config import ReadOutChoice

logger = logging.getLogger("vllm.anydepth")

Rows = dict[Site, Any]
"""Site -> tensor of row numbers of the batch to read there."""


class ReadOut(ABC):
    """A way to read hidden states out of a forward pass of vLLM."""

    name: ClassVar[str]

    def __init__(self) -> None:
        self._rows: Rows = {}

    def expect(self, rows: Rows) -> None:
        """Note, before a forward pass, which rows of its batch are read."""
        self._rows = rows

    @abstractmethod
    def take(self, aux: Sequence[Any] | None) -> dict[Site, Any]:
        """The states of the pass, per site `[rows, hidden_size]`, in the model's number format.

        `aux` is what the model returned beside its last states.
        """


def choose(model: Any, layers: int, sites: Sequence[Site], *, choice: ReadOutChoice, compiled: bool) -> ReadOut:
    """The read-out that fits model and engine; the log says which.

    Args:
        model: The loaded model.
        layers: Number of its blocks.
        sites: The sites to read.
        choice: The operator's choice.
        compiled: Whether the model runs compiled or in captured graphs, where hooks are not called.

    Raises:
        UnsupportedModel: None fits; the message names the remedy.
    """
    names = ", ".join(map(str, sites))
    supports_eagle3 = require("vllm.model_executor.models.interfaces", extra="vllm").supports_eagle3
    auxiliary = supports_eagle3(model) and all(site.module in ("input_layernorm", "output") for site in sites)
    if choice == "hooks" or (choice == "auto" and not compiled):
        if compiled:
            raise UnsupportedModel("read_out is 'hooks', which needs eager mode; start vLLM with --enforce-eager")
        found: ReadOut = HookReadOut(model, layers, sites)
    elif auxiliary:
        found = AuxReadOut(model, layers, sites)
    else:
        raise UnsupportedModel(
            f"{type(model).__name__} does not offer the states at {names} in compiled graphs (that needs vLLM's "
            "auxiliary hidden states, which give input_layernorm and output only); start vLLM with --enforce-eager"
        )
    logger.info("anydepth reads %s by %s", names, found.name)
    return found


class HookReadOut(ReadOut):
    """Forward hooks on the modules themselves: any site, in eager mode."""

    name = "forward hooks"

    def __init__(self, model: Any, layers: int, sites: Sequence[Site]) -> None:
        super().__init__()
        self._sites, self._states = tuple(sites), dict[Site, Any]()
        for site in sites:
            find_module(model, layers, site).register_forward_hook(self._hook(site))

    def prove(self, run: Callable[[], object], row: Any) -> None:
        """Make a trial pass, so that a module that is never called is refused before the first request.

        Args:
            run: Runs the model on one token or more.
            row: The number 0, an int64 tensor `[1]` on the model's device.

        Raises:
            UnsupportedModel: A site's module was not called.
        """
        self.expect(dict.fromkeys(self._sites, row))
        run()
        self.take(None)

    def _hook(self, site: Site) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            if (rows := self._rows.get(site)) is not None:
                self._states[site] = _state(output, rows, whole=site.module == "output")

        return hook

    def take(self, aux: Sequence[Any] | None) -> dict[Site, Any]:
        """See `ReadOut.take`."""
        states, self._states, rows, self._rows = self._states, {}, self._rows, {}
        for site in rows:
            if site not in states:
                raise UnsupportedModel(f"site {site} cannot be read: vLLM does not call this module; read another site")
        return states


class AuxReadOut(ReadOut):
    """The auxiliary hidden states that models offer to EAGLE-3 drafters: part of the compiled graph."""

    name = "auxiliary hidden states"

    def __init__(self, model: Any, layers: int, sites: Sequence[Site]) -> None:
        super().__init__()
        self._layer = {site: site.block + (site.module == "output") for site in sites}
        self._norms = {site: find_module(model, layers, site) for site in sites if site.module == "input_layernorm"}
        self._order = {layer: place for place, layer in enumerate(sorted(set(self._layer.values())))}
        model.set_aux_hidden_state_layers(tuple(self._order))

    def take(self, aux: Sequence[Any] | None) -> dict[Site, Any]:
        """See `ReadOut.take`."""
        states: dict[Site, Any] = {}
        for site, rows in self._rows.items():
            assert aux is not None
            stream = aux[self._order[self._layer[site]]].index_select(0, rows)
            states[site] = self._norms[site](stream) if site in self._norms else stream
        self._rows = {}
        return states


def find_blocks(model: Any, layers: int) -> Any:
    """The model's list of blocks; UnsupportedModel if it has none."""
    nn = require("torch", extra="vllm").nn
    lists = [
        (name.count("."), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == layers
    ]
    if not lists:
        raise UnsupportedModel(f"{type(model).__name__} has no list of {layers} blocks to read from")
    return min(lists, key=lambda found: found[:2])[2]


def find_module(model: Any, layers: int, site: Site) -> Any:
    """The module of a site; UnsupportedModel names what there is instead."""
    return site.within(find_blocks(model, layers)[site.block])


def _state(output: Any, rows: Any, *, whole: bool) -> Any:
    """The wanted rows of a module's output.

    vLLM's blocks return (output of the last part, residual stream without it), unsummed; its fused norms return
    (normed, residual stream).
    """
    if not isinstance(output, tuple):
        return output.index_select(0, rows)
    first = output[0].index_select(0, rows)
    return first + output[1].index_select(0, rows) if whole and output[1] is not None else first
