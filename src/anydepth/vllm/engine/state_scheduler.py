"""Schedule the requests of `VllmBackend`, and write the states that they ask for into a folder for its process."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.errors import ConfigError
from anydepth.vllm.engine.positions import Place
from anydepth.vllm.engine.reading_scheduler import ReadingScheduler
from anydepth.vllm.report_field import KEY
from anydepth.vllm.wire import Findings


class StateScheduler(ReadingScheduler):
    """The `scheduler_cls` of an engine that collects states. It guards nothing.

    A request asks with `extra_args["anydepth"] = {"read": [position, ...], "file": name}` for the file `NAME.npy`, a
    float32 array `[positions, sites, hidden_size]`.
    """

    collects = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.setup.options.spool is None:
            raise ConfigError("additional_config collects states and names no spool folder; use VllmBackend")
        self._folder = Path(self.setup.options.spool)
        self._sites = range(len(self.setup.site_of))
        self._wanted: dict[str, tuple[str, list[int], dict[Place, np.ndarray]]] = {}

    def add_request(self, request: Any) -> None:
        """Note what the request asks for."""
        asked = (request.sampling_params.extra_args or {}).get(KEY) or {}
        if asked.get("read"):
            self._wanted[request.request_id] = (Path(asked["file"]).name, list(asked["read"]), {})
        super().add_request(request)

    def _unread(self, request_id: str) -> list[Place]:
        _, positions, found = self._wanted.get(request_id, ("", [], {}))
        return [place for place in product(positions, self._sites) if place not in found]

    def _take(self, findings: Findings) -> None:
        """Keep what a step has found; write the file of each request that is complete."""
        for (request_id, position, site), state in findings.items():
            if request_id in self._wanted:
                self._wanted[request_id][2][position, site] = state
        for request_id in {request_id for request_id, *_ in findings} & set(self._wanted):
            if not self._unread(request_id):
                file, positions, found = self._wanted.pop(request_id)
                states = [[found[position, site] for site in self._sites] for position in positions]
                np.save(self._folder / f"{file}.npy", np.array(states, dtype=np.float32))
