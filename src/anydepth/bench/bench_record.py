"""Keep the figures of a run, and hand them on as they come."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import anydepth
from anydepth.detectors import LinearProbe

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend

THROUGHPUTS = ("guarded_throughput", "guarded_throughput_riding", "guarded_throughput_rk")
"""The throughputs of a result: of the probe on forks, of the probe riding in the decode steps, of the look-ahead."""


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One figure for people: what it is of, at what, and the figure itself."""

    what: str
    at: str
    figure: str


class Report:
    """The result so far, and the callback that gets it.

    Args:
        backend: The model.
        probe: The probe that checks.
        dtype: Number format of the weights, as the user gave it.
        budget: Seconds that the measuring may take.
        came: Called with new figures and the result so far.
    """

    def __init__(
        self,
        backend: "TransformersBackend",
        probe: LinearProbe,
        dtype: str,
        budget: float,
        came: Callable[[Sequence[BenchRow], Mapping[str, Any]], None],
    ) -> None:
        import torch

        self.backend, self.probe, self._came = backend, probe, came
        self.ratios: dict[tuple[str, int], list[float]] = {}
        self.result: dict[str, Any] = {
            **{key: {} for key in ("check_ratio", "riding_ratio", "naive_over_check", *THROUGHPUTS)},
            "packed_speedup": None,
            "packed_over_own_forks": None,
            "seconds": {},
            "answer_tokens": {key: {} for key in THROUGHPUTS},
            "cut": [],
            "budget_seconds": budget,
            "finished": False,
            "model": {"name": backend.identity.name, "layers": backend.identity.num_layers, "dtype": dtype},
            "probe": {
                "reads": [str(read) for read in probe.reads],
                "safety_tokens": probe.card.safety_tokens or len(probe.card.probe_ids),
            },
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "threads": torch.get_num_threads(),
                "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
                "system": platform.platform(),
            },
            "versions": {
                "anydepth": anydepth.__version__,
                **{name: version(name) for name in ("torch", "transformers")},
            },
        }

    def tell(self, *rows: BenchRow) -> None:
        """Hand on new figures."""
        self._came(rows, self.result)
