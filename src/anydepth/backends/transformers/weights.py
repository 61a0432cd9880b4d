"""See that a checkpoint's files hold exactly the weights that its model has."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

_NAMED = 3
_INDEX = re.compile(r"^(?P<block>.+?\.\d+)\.(?P<inner>.+)$")


def weights_fault(model: Any, info: Mapping[str, Collection[Any]], remedy: str) -> str | None:
    """What is wrong with the weights of a model that was just loaded, with the remedy; None if nothing is.

    Transformers fills a weight that the files lack, or have in another shape, with random values, and drops a tensor
    that the model has no place for; with either, what is guarded is not the model that was meant. Weights that are tied
    to others, and those that an architecture declares as not needed, are not in its lists.

    Args:
        model: The model.
        info: What `from_pretrained(output_loading_info=True, ignore_mismatched_sizes=True)` returned.
        remedy: What to do where the files lack weights.
    """
    if missing := sorted(info["missing_keys"], key=_natural):
        return (
            f"the files lack weights of the model ({len(missing)}), which would be filled with random values: "
            f"{some(missing)}; {remedy}"
        )
    if other := sorted(info["mismatched_keys"], key=lambda found: _natural(found[0])):
        shapes = [f"{name} is {list(stored)}, the model's is {list(wanted)}" for name, stored, wanted in other]
        return (
            f"the files hold weights ({len(shapes)}) in another shape than config.json says, so that random values "
            f"would take their place: {some(shapes)}; fetch config.json and weights of one checkpoint"
        )
    # A quantised model's own loader reads tensors beside the weights, and does not say which of them it used.
    quantised = getattr(model, "hf_quantizer", None) is not None
    if not quantised and (dropped := sorted(_dropped(model, info["unexpected_keys"]), key=_natural)):
        return (
            f"the files hold weights ({len(dropped)}) that config.json leaves no place for, and without them the model "
            f"is another: {some(dropped)}; fetch config.json and weights of one checkpoint"
        )
    return None


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _dropped(model: Any, unexpected: Collection[str]) -> list[str]:
    """The unexpected tensors that belong to a layer that the model has, or to a block beyond its last one.

    So a bias that the config says is none, scales of weights that it says are not quantised, a block too many. A whole
    part that the model has not (a vision tower, a head for another task) is left out on purpose.
    """
    layers = {name for name, each in model.named_modules() if next(each.parameters(recurse=False), None) is not None}
    beside = [key for key in unexpected if key.rpartition(".")[0] in layers]
    return [*beside, *_further_blocks(model, unexpected)]


def _further_blocks(model: Any, unexpected: Collection[str]) -> list[str]:
    """Tensors of blocks that are built as the model's own are, but beyond the number that its config says.

    A block with tensors of other names is one that predicts further tokens (MTP), which is not run here.
    """
    known: dict[str, set[str]] = defaultdict(set)
    blocks = set()
    for name, _ in model.named_parameters():
        if parts := _INDEX.match(name):
            blocks.add(parts["block"])
            known[parts["block"].rpartition(".")[0]].add(parts["inner"])
    found: dict[str, set[str]] = defaultdict(set)
    for key in unexpected:
        if (parts := _INDEX.match(key)) and parts["block"] not in blocks:
            found[parts["block"]].add(parts["inner"])
    return [
        f"{block}.{inner}"
        for block, inners in found.items()
        if inners <= known[block.rpartition(".")[0]]
        for inner in inners
    ]


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts `layers.2` before `layers.10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
