"""Find out what this CPU computes slowly, and go around it."""

import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from anydepth.patches import TORCH_LINEAR

FEW = 256
"""Rows of a matrix product up to which `turn` swaps its operands; with more there is nothing to gain."""


class Turned(torch.nn.Linear):
    """A linear layer that computes `weight @ rows.T` instead of `rows @ weight.T` for 2 to `FEW` rows of float32.

    Those are headers and batches; single rows, so the tokens of one answer, are multiplied as before.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The layer's product, `[..., out_features]`, equal but for last digits."""
        rows = input.numel() // max(1, input.shape[-1])
        if not 1 < rows <= FEW or input.dtype != torch.float32:
            return super().forward(input)
        flat = input.reshape(rows, input.shape[-1]).t()
        product = self.weight @ flat if self.bias is None else torch.addmm(self.bias.unsqueeze(1), self.weight, flat)
        return product.t().contiguous().view(*input.shape[:-1], self.out_features)


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
    """True if PyTorch multiplies float32 with Intel's library (MKL) on a processor of another maker.

    There a product of a few rows took two to three times as long as its turned form (AMD EPYC with AVX2). Told by the
    maker and not by a clock, so that two runs on one machine give the same digits.
    """
    return torch.backends.mkl.is_available() and "Intel" not in _maker()


def turn(model: Any) -> int:
    """Make the linear layers of a model `Turned` ones, in place; returns how many there are."""
    layers = [each for each in model.modules() if type(each) is torch.nn.Linear]
    TORCH_LINEAR.check()
    for layer in layers:
        TORCH_LINEAR.replace(layer, "__class__", Turned)
    return len(layers)


def _maker() -> str:
    """What the system says of the processor, its maker among it."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()


def _seconds(product: Callable[[], Any]) -> float:
    """The shortest of a few runs, after one that does not count."""
    took = []
    for _ in range(4):
        begun = time.perf_counter()
        product()
        took.append(time.perf_counter() - begun)
    return min(took[1:])
