"""Make a guard of the operator's settings for the model that vLLM serves; every process makes the same."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from anydepth.backends.base import Read, Site
from anydepth.backends.vllm.facts import VllmModel
from anydepth.backends.vllm.options import EngineOptions, engine_options
from anydepth.config import GuardConfig, guard_config, with_own_policy
from anydepth.detectors import LinearProbe, Rethink, find_shipped
from anydepth.errors import ConfigError, ProbeError


@dataclass(frozen=True)
class Setup:
    """The guard of one engine.

    Attributes:
        options: What the operator wrote.
        model: The model's facts.
    """

    options: EngineOptions
    model: VllmModel

    @classmethod
    def of(cls, vllm_config: Any) -> "Setup":
        """Build it from vLLM's configuration; ConfigError if there is no table of ours in it."""
        options = engine_options(vllm_config.additional_config)
        return cls(options, VllmModel(vllm_config.model_config, options.settings.model.template_kwargs))

    @cached_property
    def detector(self) -> LinearProbe | Rethink:
        """The detector, bound to the model; ProbeMismatch or ProbeError if there is none that fits."""
        table, backend = self.options.settings.guard, self._backend
        if table.detector != "probe":
            detector: LinearProbe | Rethink = Rethink("score" if table.detector == "rethink-score" else "look-ahead")
        elif table.probe is not None:
            detector = LinearProbe.load(table.probe)
        elif (found := find_shipped(backend)) is not None:
            return found
        else:
            raise ProbeError(
                f"no probe is shipped for {self.model.identity.name}; name one with [guard] probe, fit one with "
                '`anydepth fit`, or set [guard] detector = "rethink"'
            )
        detector.bind(backend)
        return detector

    @property
    def _backend(self) -> Any:
        return self.model  # detectors are bound to facts only; sessions are the scheduler's

    @cached_property
    def guard(self) -> GuardConfig:
        """How answers are guarded unless a request is allowed something else."""
        return guard_config(self.options.settings.guard.guard_options(), with_own_policy(GuardConfig(), self.detector))

    @cached_property
    def reads(self) -> tuple[Read, ...]:
        """Which states are read at a check; none for a detector that reads text or logits."""
        return self.detector.reads if isinstance(self.detector, LinearProbe) else ()

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Where the worker reads, each site once."""
        if self.options.collects:
            return self.options.sites
        return tuple(dict.fromkeys(read.site for read in self.reads))

    @cached_property
    def header_ids(self) -> tuple[int, ...]:
        """What is appended for a check: the Safety Tokens up to the last one that is read, whole for text or logits."""
        header = self.model.header
        if isinstance(self.detector, LinearProbe):
            ids = self.detector.card.probe_ids
            if not ids:
                raise ConfigError("the probe reads no Safety Token; in vLLM a check needs at least one")
            return ids
        return header.ids + header.answer_ids

    @cached_property
    def room(self) -> int:
        """Tokens that a check needs behind the last token of an answer, in the model's context."""
        steps = self.detector.max_new_tokens if isinstance(self.detector, Rethink) else 1
        return len(self.header_ids) + steps
