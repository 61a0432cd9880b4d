"""Find a model's transformer blocks and the modules that a site names, without knowing the model's name."""

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from anydepth.backends.protocol import Site
from anydepth.errors import UnsupportedModel

DEFAULT_MODULE = "input_layernorm"

# Every check looks the blocks up, and a walk over all modules would cost a good part of a small model's decode step.
_FOUND: WeakKeyDictionary[nn.Module, nn.ModuleList] = WeakKeyDictionary()


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The list of transformer blocks: the outermost ModuleList with one entry per hidden layer."""
    if model in _FOUND:
        return _FOUND[model]
    count = text_config(model).num_hidden_layers
    lists = [
        (name.count("."), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise UnsupportedModel(
            f"{type(model).__name__} has no list of {count} blocks to read from; use a look-ahead detector (Rethink)"
        )
    _FOUND[model] = min(lists, key=lambda found: found[:2])[2]
    return _FOUND[model]


def text_config(model: Any) -> Any:
    """The configuration of the language model, also inside a multimodal one."""
    return model.config.get_text_config(decoder=True)


def find_module(model: nn.Module, site: Site) -> nn.Module:
    """The module whose output is the hidden state of `site`; UnsupportedModel names what there is instead."""
    blocks = find_blocks(model)
    if not 0 <= site.block < len(blocks):
        raise UnsupportedModel(f"site {site} is outside the model, which has blocks 0 to {len(blocks) - 1}")
    return site.within(blocks[site.block])


def default_site(model: nn.Module) -> Site:
    """The paper's kind of site at two thirds of the depth; the block output where there is no `input_layernorm`."""
    blocks = find_blocks(model)
    block = min(max(1, round(len(blocks) * 2 / 3)), len(blocks) - 1)
    if DEFAULT_MODULE in dict(blocks[block].named_children()):
        return Site(block, DEFAULT_MODULE)
    return Site(max(block - 1, 0), "output")
