"""Find out which number formats this CPU computes slowly."""

from functools import cache
from timeit import repeat

import torch


@cache
def slow_on_this_cpu(dtype: torch.dtype) -> bool:
    """True if matrix products of `dtype` take more than twice as long as float32 ones: the CPU has no instructions."""
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    left, right = torch.ones(64, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    whole = left.float(), right.float()
    # the shortest of a few runs, after one that does not count
    reduced = min(repeat(lambda: left @ right, number=1, repeat=4)[1:])
    return reduced > 2 * min(repeat(lambda: whole[0] @ whole[1], number=1, repeat=4)[1:])
