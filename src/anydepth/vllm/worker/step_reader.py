"""Turn the orders of one step into rows of its batch, and the states there into findings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from anydepth.vllm.setup import Setup
from anydepth.vllm.wire import OPENERS, Findings, Key, Orders, Span
from anydepth.vllm.worker.readout import ReadOut

if TYPE_CHECKING:
    from anydepth.backends.protocol import Site


@dataclass(slots=True)
class StepValues:
    """What one step has read, still on the device.

    Attributes:
        values: For a linear detector float64 `[values]`, else states, float32 `[rows, hidden_size]`: per site those of
            its keys, then those of the spans' rows.
        keys: The keys of each site.
        columns: Per site the columns of `Setup.span_reads` that are read there.
        spans: The spans, in the order of their rows.
        width: Number of columns.
    """

    values: Any
    keys: "Mapping[Site, Sequence[Key]]"
    columns: "Mapping[Site, Sequence[int]]"
    spans: Mapping[str, Span]
    width: int

    def findings(self) -> Findings:
        """Bring everything over at once: the one time that a step waits for the device."""
        values = self.values.cpu().numpy()
        linear = values.ndim == 1
        rows = sum(span.size for span in self.spans.values())
        tokens = np.empty((rows, self.width, *values.shape[1:]), values.dtype)
        states: dict[Key, Any] = {}
        for site, keys in self.keys.items():
            single, values = values[: len(keys)], values[len(keys) :]
            states |= zip(keys, single.tolist() if linear else single, strict=True)
            if rows and (columns := self.columns.get(site)):
                count = rows * len(columns) if linear else rows
                read, values = values[:count], values[count:]
                tokens[:, columns] = read.reshape(rows, len(columns)) if linear else read[:, None]
        return Findings(states, self._spans(tokens))

    def _spans(self, tokens: np.ndarray) -> dict[str, tuple[int, np.ndarray]]:
        ends = np.cumsum([span.size for span in self.spans.values()])
        return {
            name: (span.first, tokens[end - span.size : end])
            for (name, span), end in zip(self.spans.items(), ends, strict=True)
        }


class StepReader:
    """Reads what was ordered for one step: `expect` before its forward pass, `take` after it.

    Args:
        setup: What may be read.
        read_out: The way to the states.
        device: Where the model runs.

    Attributes:
        weight: A linear detector's weight on the device, float64 `[reads, hidden_size]`: sums over many widths keep
            their digits. None if the states themselves are wanted.
    """

    def __init__(self, setup: Setup, read_out: ReadOut, device: Any) -> None:
        self._site_of, self._read_out, self._device = setup.site_of, read_out, device
        self._width = len(setup.span_reads)
        self._columns: dict[Site, list[int]] = {}
        for column, read in enumerate(setup.span_reads):
            self._columns.setdefault(setup.site_of[read], []).append(column)
        self.weight: Any = None
        if not setup.options.collects and setup.weight is not None:
            self.weight = torch.from_numpy(setup.weight.astype(np.float64)).to(device)
        self._span_reads = {
            site: torch.tensor([setup.span_reads[column] for column in columns], device=device)
            for site, columns in self._columns.items()
        }
        self._keys: dict[Site, list[Key]] = {}
        self._spans: Mapping[str, Span] = {}

    def expect(self, orders: Orders, rows: Mapping[str, int]) -> None:
        """Say which rows of the batch the orders mean; `rows` has the first row of each request."""
        self._keys = {site: [] for site in self._columns} if orders.spans else {}
        self._spans = orders.spans
        for key in orders.states:
            if key[2] != OPENERS:
                self._keys.setdefault(self._site_of[key[2]], []).append(key)
        if not self._keys:
            return
        spans = [np.arange(each.size) + (rows[name] + each.offset) for name, each in orders.spans.items()]
        wanted = []
        for site, keys in self._keys.items():
            single = [np.array([rows[key[0]] + orders.states[key] for key in keys], np.int64)]
            wanted.append(np.concatenate(single + spans if site in self._columns else single))
        every = torch.from_numpy(np.concatenate(wanted)).to(self._device)
        self._read_out.expect(dict(zip(self._keys, every.split([len(each) for each in wanted]), strict=True)))

    def take(self, aux: Any) -> StepValues | None:
        """What the pass has given, not waited for; None if nothing was ordered. `aux` is for the read-out."""
        if not self._keys:
            return None
        found = self._read_out.take(aux)
        parts = [part for site, keys in self._keys.items() for part in self._values(found[site], site, keys)]
        values = StepValues(torch.cat(parts), self._keys, self._columns, self._spans, self._width)
        self._keys, self._spans = {}, {}
        return values

    def _values(self, states: Any, site: "Site", keys: Sequence[Key]) -> list[Any]:
        """What the states at one site, `[keys and rows of spans, hidden_size]`, give, flat for a linear detector."""
        if self.weight is None:
            return [states.float()]
        states, found = states.double(), []
        if keys:
            found.append((states[: len(keys)] * self.weight[[read for *_, read in keys]]).sum(-1))
        if len(states) > len(keys):
            weight = self.weight.index_select(0, self._span_reads[site])
            found.append((states[len(keys) :] @ weight.T).flatten())
        return found
