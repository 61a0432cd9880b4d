"""Count the memory that a check takes."""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.cache_utils import Cache

from anydepth.backends.protocol import Read, sites_of
from anydepth.backends.transformers.session import TransformersSession

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def fork_bytes(session: TransformersSession, reads: tuple[Read, ...]) -> tuple[int, int]:
    """Bytes of the first row's cache, and of what a fork of it has beyond them once the header was run on it."""
    backend = session._backend
    probe_ids = backend.header.ids[: max(read.token for read in reads) + 1]
    sites = sites_of(reads)
    assert session._cache is not None
    before = _storages(session._cache)
    (branch,) = session._branches([session.current(0)], [0], session._cache)
    assert branch.cache is not None
    if probe_ids:
        backend.read_branch(branch.append(probe_ids), sites)
    after = _storages(branch.cache)
    return sum(before.values()), sum(size for place, size in after.items() if place not in before)


def peak_growth(work: Callable[[], object]) -> int | None:
    """How many bytes the process has in memory at most while `work` is done, beyond those before; None off Linux.

    Memory that was freed earlier and is still in the process would be used again without counting, so it is handed back
    first.
    """
    try:
        _hand_back_freed_memory()
        _RESET.write_text("5")  # the peak starts anew at what there is now
        before = _resident("VmRSS")
        work()
        return max(0, _resident("VmHWM") - before)
    except OSError:
        return None


def _hand_back_freed_memory() -> None:
    """Return what glibc keeps of freed memory to the kernel; nothing with another C library."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _storages(cache: Cache) -> dict[int, int]:
    """Address and size of each piece of memory that the layers hold."""
    found = {}
    for layer in cache.layers:
        for tensor in _tensors(list(vars(layer).values())):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
