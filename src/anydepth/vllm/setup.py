"""Make a guard of the operator's settings for the model that vLLM serves; every process makes the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp, isfinite
from typing import Any

import numpy as np

from anydepth.backends.protocol import Capability, Read, Site, last_header_token, sites_of
from anydepth.config import GuardConfig, guard_config, with_own_policy
from anydepth.detectors import (
    Cascade,
    Detector,
    LinearDetector,
    LinearProbe,
    OutsideDetector,
    TextDetector,
    declares_reads,
    detector_named,
    detector_over,
    embeddings_of,
    find_shipped,
)
from anydepth.detectors.cascade import Band
from anydepth.errors import CheckError, ConfigError, ProbeError
from anydepth.stages import Spent
from anydepth.types import Score
from anydepth.vllm.additional_config import EngineOptions, engine_options
from anydepth.vllm.served_model import ServedModel


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
        backend: Any = self.model  # detectors are bound to facts only; sessions are the scheduler's
        settings = self.options.settings
        table = settings.guard
        detector = detector_named(table.detector)
        if detector is None:
            probe = find_shipped(backend) if table.probe is None else LinearProbe.load(table.probe)
            if probe is None:
                raise ProbeError(
                    f"no probe is shipped for {self.model.identity.name}; name one with [guard] probe, fit one with "
                    '`anydepth fit`, or set [guard] detector = "rethink"'
                )
            detector = detector_over(probe, table.detector, table.band, settings.external.options())
        for part in _parts(detector):
            if not isinstance(part, OutsideDetector):
                part.bind(backend)
        return detector

    def try_outside(self) -> None:
        """Bind the detector that is asked outside of the engine, if there is one; it makes a trial request.

        Raises:
            CapabilityError: The endpoint gives no verdict.
        """
        backend: Any = self.model
        for part in _parts(self.detector):
            if isinstance(part, OutsideDetector):
                part.bind(backend)

    @cached_property
    def stages(self) -> tuple[tuple[Detector, Band | None], ...]:
        """The detectors in the order in which they are asked; one alone if the detector is no cascade.

        Each comes with the band of the scores before it in which it is asked; the first has none.
        """
        found = self.detector
        return ((found.first, None), *found.later) if isinstance(found, Cascade) else ((found, None),)

    @property
    def first(self) -> Detector:
        """The detector that makes every check, or that of a cascade which is asked first."""
        return self.stages[0][0]

    @cached_property
    def guard(self) -> GuardConfig:
        """How answers are guarded unless a request is allowed something else."""
        return guard_config(self.options.settings.guard.guard_options(), with_own_policy(GuardConfig(), self.detector))

    @cached_property
    def reads(self) -> tuple[Read, ...]:
        """Which states are read at a check; none for a detector that reads text or logits."""
        return tuple(self.first.reads) if declares_reads(self.first) else ()

    @cached_property
    def embeddings(self) -> np.ndarray | None:
        """Trained Safety Tokens, float32 `[tokens, hidden_size]`, in the place of the header; None for the header."""
        return None if self.options.collects else embeddings_of(self.first)

    @cached_property
    def weight(self) -> np.ndarray | None:
        """The weight of a linear detector, float32 `[reads, hidden_size]`; None if the states themselves are needed."""
        return self.first.weight if self.reads and isinstance(self.first, LinearDetector) else None

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
        if self.weight is None:
            assert declares_reads(self.first)
            states = np.stack([values[read] for read in range(len(self.reads))])
            return self.first.score_each(states[None])[0]
        assert isinstance(self.first, LinearDetector)
        logit = float(sum(values.values())) + self.first.bias
        if not isfinite(logit):
            return CheckError("the hidden state is not finite")
        return Score(1 / (1 + exp(-logit)) if logit >= 0 else exp(logit) / (1 + exp(logit)))

    def score_text(self, detector: TextDetector, token_ids: Sequence[int]) -> Score:
        """Score a look-ahead by the tokens that the model went on with."""
        score = detector.judge_text(self.model.decode_text(list(token_ids)))
        return replace(score, spent=Spent(look_ahead_tokens=len(token_ids)))

    def decided(self, detector: TextDetector, token_ids: Sequence[int]) -> bool:
        """True if no more tokens of a check request can change the score of a look-ahead."""
        return detector.decided(self.model.decode_text(list(token_ids)))

    @cached_property
    def text_detectors(self) -> tuple[TextDetector, ...]:
        """The detectors that judge what the model writes behind the header."""
        return tuple(each for each, _ in self.stages if isinstance(each, TextDetector))

    @cached_property
    def openers(self) -> tuple[int, ...]:
        """Tokens that begin a refusal, sorted, for a detector that takes their probability; else none."""
        return next((each.opener_ids or () for each in self.text_detectors if each.mode == "score"), ())

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
        if not self.reads:
            return self.answer_header_ids
        return self.model.header.ids[: max(0, last_header_token(self.reads)) + 1]

    @property
    def answer_header_ids(self) -> tuple[int, ...]:
        """What is appended for a check of what the model writes next: the whole header, and the way into the answer."""
        return self.model.header.ids + self.model.header.answer_ids

    @cached_property
    def room(self) -> int:
        """Tokens that a check needs behind the last token of an answer, in the model's context."""
        texts = [len(self.answer_header_ids) + each.max_new_tokens for each in self.text_detectors]
        return max([*texts, *([len(self.header_ids) + 1] if self.reads else [])])


def _parts(detector: Detector) -> tuple[Detector, ...]:
    """The detectors that make the checks, in their order.

    Raises:
        ConfigError: One of them is of a kind whose checks vLLM cannot make.
    """
    parts = detector.parts if isinstance(detector, Cascade) else (detector,)
    first, *later = parts
    if not declares_reads(first) and not isinstance(first, TextDetector):
        raise ConfigError(
            f"detector {first.name!r} says neither which states it reads nor how it judges a text, so vLLM "
            "cannot make its checks; give it `reads` and `score_each` (docs/detectors.md), or use --engine transformers"
        )
    for each in later:
        text = isinstance(each, TextDetector)
        if not text and not (isinstance(each, OutsideDetector) and each.needs == {Capability.CONVERSATION}):
            raise ConfigError(
                f"detector {each.name!r} is asked by a cascade after {first.name!r}; vLLM can ask one that judges a "
                "text there, or one outside: take Rethink or ExternalGuard, or use --engine transformers"
            )
    if sum(isinstance(each, TextDetector) and each.mode == "score" for each in parts) > 1:
        raise ConfigError("two detectors of the cascade take the probability of openers; vLLM reads one such set")
    return parts
