"""Schedule the requests of `VllmBackend`, and write the states that they ask for into a folder for its process."""

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.errors import ConfigError
from anydepth.vllm.engine.positions import Place
from anydepth.vllm.engine.range_sums import RangeSums
from anydepth.vllm.engine.reading_scheduler import ReadingScheduler
from anydepth.vllm.report_field import KEY
from anydepth.vllm.wire import Findings


@dataclass(slots=True)
class Wanted:
    """What one request asks for, as far as it has come.

    Attributes:
        file: Name of the file to write, without its ending.
        positions: Where single states are read.
        sums: The sums over ranges of tokens.
        found: Position and index of the site -> the state there, float32 `[hidden_size]`.
    """

    file: str
    positions: list[int]
    sums: RangeSums
    found: dict[Place, np.ndarray] = field(default_factory=dict)


class StateScheduler(ReadingScheduler):
    """The `scheduler_cls` of an engine that collects states. It guards nothing.

    A request asks for the file `NAME.npy` with `extra_args["anydepth"] = {"read": [position, ...], "sums": [[begin,
    end], ...], "file": name}`. It is a float32 array `[positions + sums, sites, hidden_size]`: the states at the
    positions, then the sum of the states of each range of positions.
    """

    collects = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.setup.options.spool is None:
            raise ConfigError("additional_config collects states and names no spool folder; use VllmBackend")
        self._folder = Path(self.setup.options.spool)
        self._sites = range(len(self.setup.site_of))
        self._wanted: dict[str, Wanted] = {}

    def add_request(self, request: Any) -> None:
        """Note what the request asks for."""
        asked = (request.sampling_params.extra_args or {}).get(KEY) or {}
        if asked.get("read") or asked.get("sums"):
            self._wanted[request.request_id] = Wanted(
                Path(asked["file"]).name, list(asked.get("read", ())), RangeSums(asked.get("sums", ()))
            )
        super().add_request(request)

    def _unread(self, request_id: str) -> list[Place]:
        if (wanted := self._wanted.get(request_id)) is None:
            return []
        return [place for place in product(wanted.positions, self._sites) if place not in wanted.found]

    def _unread_tokens(self, request_id: str) -> range:
        wanted = self._wanted.get(request_id)
        return range(0) if wanted is None else range(wanted.sums.next, wanted.sums.end)

    def _take(self, findings: Findings, step: Any) -> None:
        """Keep what a step has found; write the file of each request that is complete."""
        for (request_id, position, site), state in findings.states.items():
            if request_id in self._wanted:
                self._wanted[request_id].found[position, site] = state.copy()  # not a view of the whole step
        for request_id, found in findings.spans.items():
            if request_id in self._wanted:
                self._wanted[request_id].sums.add(*found)
        touched = {request_id for request_id, *_ in findings.states} | set(findings.spans)
        for request_id in touched & set(self._wanted):
            if not self._unread(request_id) and not self._unread_tokens(request_id):
                self._write(self._wanted.pop(request_id))

    def _write(self, wanted: Wanted) -> None:
        states = [np.array([wanted.found[position, site] for site in self._sites]) for position in wanted.positions]
        np.save(self._folder / f"{wanted.file}.npy", np.array([*states, *wanted.sums.sums()], dtype=np.float32))
