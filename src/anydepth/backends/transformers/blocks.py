"""Find a model's transformer blocks and the modules that a site names, without knowing the model's name."""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from anydepth.backends.protocol import Site
from anydepth.errors import UnsupportedModel

DEFAULT_MODULE = "input_layernorm"
_BEFORE_ATTENTION = (DEFAULT_MODULE, "attn_hyper_connection")  # the second makes one state of a block's several streams

NOT_HERE = (
    "it cannot be guarded in this process: take a model that passes `anydepth inspect MODEL --prove`, or, unless this "
    "one is recurrent, try vLLM (`anydepth serve --engine vllm`)"
)
"""What is left for a model on which no kind of check works."""

# Every check looks the blocks up, and a walk over all modules would cost a good part of a small model's decode step.
_FOUND: WeakKeyDictionary[nn.Module, nn.ModuleList] = WeakKeyDictionary()


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The list of the language model's blocks: its outermost ModuleList with one entry per hidden layer.

    Raises UnsupportedModel for a model that has none, e.g. one that runs its layers several times in a pass.
    """
    if model in _FOUND:
        return _FOUND[model]
    config = text_config(model)
    # a block of two layers counts twice in `num_hidden_layers`, for the cache (LongCat)
    counts = dict.fromkeys((config.num_hidden_layers, getattr(config, "num_layers", config.num_hidden_layers)))
    for count in counts:
        for part in _language_parts(model):
            if (blocks := _outermost(part, count)) is not None:
                _FOUND[model] = blocks
                return blocks
    raise UnsupportedModel(
        f"{type(model).__name__} has no list of {config.num_hidden_layers} blocks to read from; use a look-ahead "
        "detector (Rethink)"
    )


def _language_parts(model: nn.Module) -> Iterator[nn.Module]:
    """The language model inside of `model`, as the library knows it, then all of `model`.

    A tower for images or sound may have as many blocks as the language model.
    """
    find = getattr(model, "get_decoder", None)  # of the library's models, not of every module
    part = find() if callable(find) else None
    if isinstance(part, nn.Module):
        yield part
    yield model


def _outermost(part: nn.Module, count: int) -> nn.ModuleList | None:
    lists = [
        (name.count("."), name, module)
        for name, module in part.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    return min(lists, key=lambda found: found[:2])[2] if lists else None


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
    """The paper's kind of site at two thirds of the depth; the block output where no module stands before attention.

    Where the upper blocks run on some tokens only (`readable_blocks`), it is at most the highest block below them.
    """
    blocks = find_blocks(model)
    block = min(max(1, round(len(blocks) * 2 / 3)), max(readable_blocks(model), 1) - 1)
    modules = dict(blocks[block].named_children())
    for name in _BEFORE_ATTENTION:
        if name in modules and not isinstance(modules[name], nn.ModuleList):  # a list is not called itself
            return Site(block, name)
    return Site(max(block - 1, 0), "output")


def readable_blocks(model: nn.Module) -> int:
    """How many blocks, from the first on, run on every token: a site in a later one has no state of some tokens.

    Blocks that take their keys and values from lower ones are not counted: `generate` of Gemma 4 runs them on the last
    token of the prompt only, so that there is no state of the header at depth 0.
    """
    return len(find_blocks(model)) - (getattr(text_config(model), "num_kv_shared_layers", None) or 0)
