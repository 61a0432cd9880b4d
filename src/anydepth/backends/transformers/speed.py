"""Find out what this CPU computes slowly, and go around it."""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

FEW = 256
"""Rows of a matrix product up to which `turn` swaps its operands; with more there is nothing to gain."""


@cache
def slow_on_this_cpu(dtype: torch.dtype) -> bool:
    """True if matrix products of `dtype` take more than twice as long as float32 ones: the CPU has no instructions."""
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    left, right = torch.ones(64, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    whole = left.float(), right.float()
    return _seconds(lambda: left @ right) > 2 * _seconds(lambda: whole[0] @ whole[1])


@cache
def faster_turned() -> bool:
    """True if `weight @ rows.T` takes less than 2/3 of `rows @ weight.T` for a few rows.

    So it is where the library that PyTorch multiplies float32 with does not know the CPU well.
    """
    rows, weight = torch.ones(5, 1024), torch.ones(4096, 1024)
    return _seconds(lambda: _turned(rows, weight, None)) < 2 / 3 * _seconds(lambda: rows @ weight.t())


def turn(model: Any) -> int:
    """Let the linear layers of a model swap the operands of products of 2 to `FEW` rows: headers, and batches.

    Single rows, so the tokens of one answer, are multiplied as before.

    Returns:
        The number of layers.
    """
    layers = [each for each in model.modules() if type(each) is torch.nn.Linear]
    for layer in layers:
        layer.forward = _forward(layer)
    return len(layers)


def _forward(layer: torch.nn.Linear) -> Callable[..., torch.Tensor]:
    plain = layer.forward

    def forward(input: torch.Tensor) -> torch.Tensor:
        rows = input.numel() // max(1, input.shape[-1])
        if not 1 < rows <= FEW or input.dtype != torch.float32:
            return plain(input)
        flat = _turned(input.reshape(rows, input.shape[-1]), layer.weight, layer.bias)
        return flat.view(*input.shape[:-1], layer.out_features)

    return forward


def _turned(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product = weight @ rows.t() if bias is None else torch.addmm(bias.unsqueeze(1), weight, rows.t())
    return product.t().contiguous()


def _seconds(product: Callable[[], Any]) -> float:
    """The shortest of a few runs, after one that does not count."""
    took = []
    for _ in range(4):
        begun = time.perf_counter()
        product()
        took.append(time.perf_counter() - begun)
    return min(took[1:])
