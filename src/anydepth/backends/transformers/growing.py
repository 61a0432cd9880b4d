"""A cache layer that appends and forks without copying what it holds."""

import copy
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

RESERVE = 64
"""Slots kept free behind the end: room for the header and look-ahead of a fork."""


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` whose keys and values are views into buffers with room at the end.

    `DynamicLayer.update` concatenates: every decode step and every check copies the whole layer once. Here new states
    are written behind the end, `[batch, heads, length, head_dim]` as before, and the buffers grow by a quarter when
    full. A fork shares the buffers: what it writes lies behind its parent's end, and the parent overwrites it as it
    goes on. So of several forks of one parent only one may be in use at a time. A fork that was cropped below its
    parent's end moves to buffers of its own before it writes.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None
        self._shared = 0

    def fork(self) -> "GrowingLayer":
        """A layer that can be advanced or cropped without disturbing this one."""
        twin = copy.copy(self)
        twin._shared = max(
            self._shared, self.get_seq_length()
        )  # of a cropped fork too: what it shares stays its parent's
        return twin

    def own(self) -> None:
        """Move to buffers of its own before the next write: its parent may go on meanwhile."""
        self._buffers = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the new states; all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        buffers = self._room(start, stop, key_states, value_states)
        for buffer, states in zip(buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:stop] = states
        self.keys, self.values = (buffer[:, :, :stop] for buffer in buffers)
        return self.keys, self.values

    def _room(
        self, start: int, stop: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Buffers with room up to `stop` that hold the first `start` states."""
        buffers = self._buffers
        assert self.keys is not None and self.values is not None
        if (
            buffers is not None
            and stop <= buffers[0].shape[-2]
            and start >= self._shared  # slots below are the parent's: a cropped fork must not write there
            and self.keys.data_ptr() == buffers[0].data_ptr()  # else the library rebound the keys, e.g. to select rows
        ):
            return buffers
        size = stop + stop // 4 + RESERVE
        key_buffer, value_buffer = (each.new_empty(*each.shape[:2], size, each.shape[-1]) for each in (keys, values))
        if start:
            key_buffer[:, :, :start], value_buffer[:, :, :start] = self.keys, self.values
        self._buffers, self._shared = (key_buffer, value_buffer), 0
        return self._buffers
