"""Random streams that do not disturb each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def seeded(seed: int | None, device: Any) -> Iterator[None]:
    """Run with the random state of `torch.manual_seed(seed)`, then put the old one back; None changes nothing."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class RandomStream:
    """The random stream of one session, which goes on from one `use` to the next.

    Args:
        seed: Where it begins; None for torch's own stream, which all share.
        device: The `torch.device` that samples.
    """

    def __init__(self, seed: int | None, device: Any) -> None:
        self._device, self._state = device, None
        if seed is not None:
            with seeded(seed, device):
                self._state = self._current()

    @contextmanager
    def use(self) -> Iterator[None]:
        """Sample from this stream inside, then put torch's own state back."""
        if self._state is None:
            yield
            return
        cpu, cuda = self._state
        with seeded(0, self._device):
            torch.set_rng_state(cpu)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, self._device)
            yield
            self._state = self._current()

    def _current(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        cuda = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        return torch.get_rng_state(), cuda
