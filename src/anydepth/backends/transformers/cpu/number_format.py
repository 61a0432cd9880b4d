"""Find out which number formats this CPU computes slowly."""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def slow_on_this_cpu(dtype: torch.dtype) -> bool:
    """True if matrix products of `dtype` take more than twice as long as float32 ones: the CPU has no instructions."""
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    left, right = torch.ones(64, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    whole = left.float(), right.float()
    return _seconds(lambda: left @ right) > 2 * _seconds(lambda: whole[0] @ whole[1])


def _seconds(product: Callable[[], Any]) -> float:
    """The shortest of a few runs, after one that does not count."""
    took = []
    for _ in range(4):
        begun = time.perf_counter()
        product()
        took.append(time.perf_counter() - begun)
    return min(took[1:])
