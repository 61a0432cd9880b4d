"""Write the states that offline requests ask for into a folder, for `VllmBackend` in another process."""

from pathlib import Path
from typing import Any

import numpy as np

from anydepth.errors import ConfigError
from anydepth.vllm.engine.positions import Place
from anydepth.vllm.report_field import KEY
from anydepth.vllm.setup import Setup
from anydepth.vllm.wire import Findings


class StateFiles:
    """The files of the requests: `extra_args["anydepth"] = {"read": [position, ...], "file": name}` asks for one.

    It is `NAME.npy` with a float32 array `[positions, sites, hidden_size]`.
    """

    def __init__(self, setup: Setup) -> None:
        if setup.options.spool is None:
            raise ConfigError("additional_config collects states and names no spool folder; use VllmBackend")
        self._folder = Path(setup.options.spool)
        self._sites = len(setup.site_of)
        self._wanted: dict[str, tuple[str, list[int]]] = {}
        self._found: dict[str, dict[Place, np.ndarray]] = {}

    def add(self, request: Any) -> None:
        """Note what a request asks for."""
        asked = (request.sampling_params.extra_args or {}).get(KEY) or {}
        if asked.get("read"):
            self._wanted[request.request_id] = (Path(asked["file"]).name, list(asked["read"]))
            self._found[request.request_id] = {}

    def unread(self, request_id: str) -> list[Place]:
        """The places (position, index of the site) of a request that have not been read yet."""
        if request_id not in self._wanted:
            return []
        places = [(position, site) for position in self._wanted[request_id][1] for site in range(self._sites)]
        return [place for place in places if place not in self._found[request_id]]

    def take(self, findings: Findings) -> None:
        """Keep what a step has found; write the file of each request that is complete."""
        for (request_id, *place), state in findings.items():
            if request_id in self._found:
                self._found[request_id][place[0], place[1]] = state
        for request_id in dict.fromkeys(request_id for request_id, *_ in findings):
            if request_id in self._wanted and not self.unread(request_id):
                file, positions = self._wanted.pop(request_id)
                found = self._found.pop(request_id)
                states = [[found[position, site] for site in range(self._sites)] for position in positions]
                np.save(self._folder / f"{file}.npy", np.array(states, dtype=np.float32))
