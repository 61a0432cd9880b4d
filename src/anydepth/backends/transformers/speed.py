"""Tell number formats that this CPU has no instructions for."""

import time
from functools import cache

import torch


@cache
def slow_on_this_cpu(dtype: torch.dtype) -> bool:
    """True if matrix products of `dtype` take more than twice as long as float32 ones: the CPU has no instructions."""
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    return _product_seconds(dtype) > 2 * _product_seconds(torch.float32)


def _product_seconds(dtype: torch.dtype) -> float:
    """The shortest of a few runs, after one that does not count."""
    left, right = torch.ones(64, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    took = []
    for _ in range(4):
        begun = time.perf_counter()
        torch.matmul(left, right)
        took.append(time.perf_counter() - begun)
    return min(took[1:])
