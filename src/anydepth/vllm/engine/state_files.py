"""Write the states that an offline request asks for into a folder, for `VllmBackend` in another process."""

from pathlib import Path
from typing import Any

import numpy as np

from anydepth.errors import ConfigError
from anydepth.vllm.report_field import KEY
from anydepth.vllm.setup import Setup
from anydepth.vllm.wire import Findings, Orders

Key = tuple[int, int]
"""Position in the prompt, index of the site."""


class Spool:
    """The scheduler's part: `extra_args["anydepth"] = {"read": [position, ...], "file": name}` asks for states.

    Each request gets a file `NAME.npy` with a float32 array `[positions, sites, hidden_size]`.
    """

    def __init__(self, setup: Setup) -> None:
        if setup.options.spool is None:
            raise ConfigError("additional_config collects states and names no spool folder; use VllmBackend")
        self._folder = Path(setup.options.spool)
        self._sites = len(setup.sites)
        self._wanted: dict[str, tuple[str, list[int]]] = {}
        self._found: dict[str, dict[Key, np.ndarray]] = {}
        self._asked: list[tuple[str, Key]] = []

    def add(self, request: Any) -> None:
        """Note what a request asks for."""
        asked = (request.sampling_params.extra_args or {}).get(KEY) or {}
        if asked.get("read"):
            self._wanted[request.request_id] = (Path(asked["file"]).name, list(asked["read"]))
            self._found[request.request_id] = {}

    def missing(self, name: str) -> int | None:
        """The first position that has yet to be read: no cached prefix may reach beyond it."""
        if name not in self._wanted:
            return None
        found = self._found[name]
        return min((place for place in self._wanted[name][1] if (place, 0) not in found), default=None)

    def orders(self, requests: Any, output: Any) -> Orders:
        """What the worker is to read in the step that vLLM has scheduled."""
        orders, self._asked = Orders(), []
        for name, count in output.num_scheduled_tokens.items():
            if name not in self._wanted:
                continue
            begin = requests[name].num_computed_tokens - count
            for place in self._wanted[name][1]:
                if begin <= place < begin + count:
                    for site in range(self._sites):
                        orders.states.append((name, place - begin, site))
                        self._asked.append((name, (place, site)))
        return orders

    def take(self, findings: Findings | None) -> None:
        """Keep what was read; write the file of each request that is complete."""
        if findings is None:
            return
        for (name, key), state in zip(self._asked, findings.states, strict=True):
            if name in self._found:
                self._found[name][key] = state
        for name in dict.fromkeys(name for name, _ in self._asked):
            if name in self._wanted and self.missing(name) is None:
                file, places = self._wanted.pop(name)
                found = self._found.pop(name)
                states = [[found[place, site] for site in range(self._sites)] for place in places]
                np.save(self._folder / f"{file}.npy", np.array(states, dtype=np.float32))
