"""Count the memory that a check takes."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves
from transformers.cache_utils import Cache

from anydepth.backends.protocol import Read
from anydepth.backends.transformers.session import TransformersSession

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def fork_bytes(session: TransformersSession, reads: tuple[Read, ...]) -> tuple[int, int]:
    """Bytes of the first row's cache, and of what a fork of it has beyond them once the header was run on it."""
    before = _storages(session.cache)
    branch = session.fork_at(0)
    assert branch.cache is not None
    session.passes.run_header(branch, reads)
    after = _storages(branch.cache)
    return sum(before.values()), sum(size for place, size in after.items() if place not in before)


def peak_growth(work: Callable[[], object]) -> int | None:
    """How many bytes the process has in memory at most while `work` is done, beyond those before; None off Linux.

    Memory that was freed earlier and is still in the process would be used again without counting, so it is handed back
    first.
    """
    try:
        # what glibc keeps of freed memory goes back to the kernel; other C libraries have no such function
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
        _RESET.write_text("5")  # the peak starts anew at what there is now
        before = _resident("VmRSS")
        work()
        return max(0, _resident("VmHWM") - before)
    except OSError:
        return None


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _storages(cache: Cache) -> dict[int, int]:
    """Address and size of each piece of memory that the layers hold."""
    held = tree_leaves([vars(layer) for layer in cache.layers])
    pieces = [each.untyped_storage() for each in held if isinstance(each, torch.Tensor)]
    return {piece.data_ptr(): piece.nbytes() for piece in pieces}
