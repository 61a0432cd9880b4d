"""Make a guard of the operator's settings for the model that vLLM serves; every process makes the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, isfinite
from typing import Any

import numpy as np

from anydepth.backends.protocol import Read, Site, last_header_token, sites_of
from anydepth.config import GuardConfig, guard_config, with_own_policy
from anydepth.detectors import (
    Detector,
    LinearDetector,
    LinearProbe,
    TextDetector,
    declares_reads,
    detector_named,
    detector_parts,
    embeddings_of,
    find_shipped,
)
from anydepth.errors import CheckError, ConfigError, ProbeError
from anydepth.types import Score
from anydepth.vllm.additional_config import NO_CASCADE, EngineOptions, engine_options
from anydepth.vllm.served_model import ServedModel
from anydepth.vllm.wire import OPENERS


@dataclass(frozen=True)
class Setup:
    """The guard of one engine.

    Attributes:
        options: What the operator wrote.
        model: The model's facts.
    """

    options: EngineOptions
    model: ServedModel

    @classmethod
    def of(cls, vllm_config: Any) -> "Setup":
        """Build it from vLLM's configuration; ConfigError if there is no table of ours in it."""
        options = engine_options(vllm_config.additional_config)
        adapter = getattr(vllm_config, "lora_config", None) is not None
        kwargs = options.settings.model.template_kwargs
        return cls(options, ServedModel(vllm_config.model_config, kwargs, adapter=adapter))

    @cached_property
    def detector(self) -> Detector:
        """The detector, bound to the model.

        Raises:
            ProbeMismatch: The probe belongs to another model.
            ProbeError: No probe is named and none is shipped for the model.
            ConfigError: The detector is of a kind that vLLM cannot make checks for.
        """
        table = self.options.settings.guard
        backend: Any = self.model  # detectors are bound to facts only; sessions are the scheduler's
        if table.detector == "cascade":
            raise ConfigError(_no_cascade(table.detector))
        detector = detector_named(table.detector)
        if detector is None:
            detector = find_shipped(backend) if table.probe is None else LinearProbe.load(table.probe)
        if detector is None:
            raise ProbeError(
                f"no probe is shipped for {self.model.identity.name}; name one with [guard] probe, fit one with "
                '`anydepth fit`, or set [guard] detector = "rethink"'
            )
        if len(detector_parts(detector)) > 1:
            raise ConfigError(_no_cascade(table.detector))
        if not declares_reads(detector) and not isinstance(detector, TextDetector):
            raise ConfigError(
                f"detector {detector.name!r} says neither which states it reads nor how it judges a text, so vLLM "
                "cannot make its checks; give it `reads` and `score_each` (docs/detectors.md), or use --engine "
                "transformers"
            )
        detector.bind(backend)
        return detector

    @cached_property
    def guard(self) -> GuardConfig:
        """How answers are guarded unless a request is allowed something else."""
        return guard_config(self.options.settings.guard.guard_options(), with_own_policy(GuardConfig(), self.detector))

    @cached_property
    def reads(self) -> tuple[Read, ...]:
        """Which states are read at a check; none for a detector that reads text or logits."""
        return tuple(self.detector.reads) if declares_reads(self.detector) else ()

    @cached_property
    def embeddings(self) -> np.ndarray | None:
        """Trained Safety Tokens, float32 `[tokens, hidden_size]`, in the place of the header; None for the header."""
        return None if self.options.collects else embeddings_of(self.detector)

    @cached_property
    def weight(self) -> np.ndarray | None:
        """The weight of a linear detector, float32 `[reads, hidden_size]`; None if the states themselves are needed."""
        return self.detector.weight if self.reads and isinstance(self.detector, LinearDetector) else None

    @cached_property
    def means(self) -> tuple[tuple[int, int], ...]:
        """The reads that are means: index among `reads`, and the mean, as `Read.token` has it."""
        return tuple((index, read.token) for index, read in enumerate(self.reads) if read.is_mean)

    @cached_property
    def longest_mean(self) -> int:
        """Over how many tokens the longest of the means goes: `-WHOLE` for one over whole answers, 0 without means."""
        return max((-token for _, token in self.means), default=0)

    @cached_property
    def span_reads(self) -> tuple[int, ...]:
        """What is read at each token of an answer, as in a `Key`: the means; each site where states are collected."""
        return tuple(range(len(self.site_of))) if self.options.collects else tuple(index for index, _ in self.means)

    @property
    def nothing(self) -> Any:
        """What a mean is at depth 0: 0.0 for a linear detector, else zeros, float32 `[hidden_size]`."""
        return 0.0 if self.weight is not None else np.zeros(self.model.identity.hidden_size, np.float32)

    def score(self, values: Mapping[int, Any]) -> Score | Exception:
        """Score one check from what was read: for each read, what `Findings` says of it, or its mean."""
        if OPENERS in values:
            return Score(min(values[OPENERS], 1.0))
        if self.weight is None:
            assert declares_reads(self.detector)
            states = np.stack([values[read] for read in range(len(self.reads))])
            return self.detector.score_each(states[None])[0]
        assert isinstance(self.detector, LinearDetector)
        logit = float(sum(values.values())) + self.detector.bias
        if not isfinite(logit):
            return CheckError("the hidden state is not finite")
        return Score(1 / (1 + exp(-logit)) if logit >= 0 else exp(logit) / (1 + exp(logit)))

    def score_text(self, token_ids: Sequence[int]) -> Score:
        """Score the look-ahead of a text detector, from the tokens that the model went on with."""
        assert isinstance(self.detector, TextDetector)
        return self.detector.judge_text(self.model.decode_text(list(token_ids)))

    def decided(self, token_ids: Sequence[int]) -> bool:
        """True if no more tokens of a check request can change its score."""
        detector = self.detector
        if not isinstance(detector, TextDetector) or detector.mode != "look-ahead":
            return True
        return detector.decided(self.model.decode_text(list(token_ids)))

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Where the worker reads, each site once."""
        return tuple(dict.fromkeys(self.site_of))

    @cached_property
    def site_of(self) -> tuple[Site, ...]:
        """The site of each index that a `Key` may have: of each read or, where states are collected, each site."""
        return self.options.sites if self.options.collects else tuple(read.site for read in self.reads)

    @cached_property
    def header_sites(self) -> tuple[Site, ...]:
        """Where the header's tokens are read: they need not run any further."""
        return self.options.sites if self.options.collects else sites_of(r for r in self.reads if r.token >= 0)

    @cached_property
    def header_ids(self) -> tuple[int, ...]:
        """What is appended for a check: the Safety Tokens up to the last one that is read, whole for text or logits.

        One at least, though a detector of means or content alone reads none: a check needs a token to be scheduled.
        Trained Safety Tokens stand under ids that are no tokens: what vLLM has cached behind them is no text's.
        """
        if self.embeddings is not None:
            return self.model.spare_ids(last_header_token(self.reads) + 1)
        header = self.model.header
        if not self.reads:
            return header.ids + header.answer_ids
        return header.ids[: max(0, last_header_token(self.reads)) + 1]

    @cached_property
    def room(self) -> int:
        """Tokens that a check needs behind the last token of an answer, in the model's context."""
        steps = self.detector.max_new_tokens if isinstance(self.detector, TextDetector) else 1
        return len(self.header_ids) + steps


def _no_cascade(name: str) -> str:
    return (
        f"[guard] detector is {name!r}, a cascade: vLLM cannot make its checks, since whether the second detector is "
        f"asked follows from the score of the first; {NO_CASCADE}"
    )
