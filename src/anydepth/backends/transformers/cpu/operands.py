"""Multiply a few rows with the operands swapped, where a CPU is slow at it otherwise."""

import platform
from functools import cache
from pathlib import Path

import torch

FEW = 256
"""Rows of a matrix product up to which the operands are swapped; with more there is nothing to gain."""


class SwappedLinear(torch.nn.Linear):
    """A linear layer that computes `weight @ rows.T` instead of `rows @ weight.T` for 2 to `FEW` rows of float32.

    Those are headers, tokens that a check rides with, and batches; single rows, so the other tokens of one answer, are
    multiplied as before.
    """

    @classmethod
    def of(cls, layer: torch.nn.Linear) -> "SwappedLinear":
        """A layer with the very parameters of `layer`, which stays as it is."""
        twin = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        twin.weight, twin.bias = layer.weight, layer.bias
        return twin.train(layer.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The same product, `[..., out_features]`, but for last digits."""
        rows = input.numel() // max(1, input.shape[-1])
        if not 1 < rows <= FEW or input.dtype != torch.float32:
            return super().forward(input)
        flat = input.reshape(rows, input.shape[-1]).t()
        product = self.weight @ flat if self.bias is None else torch.addmm(self.bias.unsqueeze(1), self.weight, flat)
        return product.t().contiguous().view(*input.shape[:-1], self.out_features)


@cache
def faster_swapped() -> bool:
    """True if PyTorch multiplies float32 with Intel's library (MKL) on a processor of another maker.

    There a product of a few rows took two to three times as long as its swapped form (AMD EPYC with AVX2). Judged by
    the maker and not by a clock, so that two runs on one machine give the same digits.
    """
    return torch.backends.mkl.is_available() and "Intel" not in _maker()


def swap_operands(model: torch.nn.Module) -> int:
    """Put a `SwappedLinear` with the same parameters in the place of each linear layer; returns how many there are.

    Layers that Accelerate has put hooks on (weights that are kept on disk) are left alone.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules(remove_duplicate=False)
        if type(layer) is torch.nn.Linear and not hasattr(layer, "_hf_hook")
    }
    for name, layer in layers.items():
        model.set_submodule(name, SwappedLinear.of(layer))
    return len(layers)


def _maker() -> str:
    """What the system says of the processor, its maker among it."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
