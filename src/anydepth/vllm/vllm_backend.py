"""Hidden states of finished answers, read by vLLM with continuous batching: for `anydepth scan` and `collect`."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.backends.protocol import Capability, FinishedAnswer, Read, Site
from anydepth.errors import CheckError, PromptError, UnsupportedModel
from anydepth.extras import require
from anydepth.settings import Settings
from anydepth.templates.header import is_mean, mean_divisor
from anydepth.vllm.launch import engine_options
from anydepth.vllm.report_field import KEY
from anydepth.vllm.served_model import ServedModel


@dataclass(slots=True)
class _Ask:
    """One request to the engine: what it is to read, and where that belongs.

    Attributes:
        row: Index of the answer.
        ids: Token ids of the request.
        positions: Where single states are read.
        places: For each position: index of the depth and of the token.
        ranges: Ranges of positions, begin and end, whose states are added up for means.
        means: For each range: index of the depth and of the token.
    """

    row: int
    ids: tuple[int, ...]
    positions: list[int] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    ranges: list[list[int]] = field(default_factory=list)
    means: list[tuple[int, int]] = field(default_factory=list)

    def extra(self, file: str) -> dict[str, Any]:
        """What `StateScheduler` is asked for."""
        return {"read": self.positions, "sums": self.ranges, "file": file}


class VllmBackend(ServedModel):
    """Implements `anydepth.backends.protocol.Reader` over a vLLM engine of its own.

    Each depth of each answer is one request of one token, text up to the depth and header; the prefix cache lets the
    requests of one answer share the text, and vLLM batches those of all answers. Means over answer tokens, at all
    depths, come out of the request of the deepest, and so does depth 0 where the prompt itself has what is read.

    Args:
        model: Hub id or folder.
        sites: Where states can be read: the engine is started for them. A function is told the facts of the model
            (its identity, template and header) before the engine is started, and gives the sites.
        template_kwargs: Variables for the chat template.
        **options: Options of `vllm.LLM`, e.g. `dtype`, `tensor_parallel_size`, `max_model_len`.

    Raises:
        ConfigError: The installed vLLM is not a supported one, or its configuration cannot be read from.
        UnsupportedModel: The model does not have one of the sites.
    """

    capabilities = frozenset({Capability.HIDDEN_STATES})
    batches_itself = True

    def __init__(
        self,
        model: str | Path,
        *,
        sites: Sequence[Site] | Callable[[ServedModel], Sequence[Site]],
        template_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        vllm = require("vllm", extra="vllm")
        if callable(sites):
            arguments = require("vllm.engine.arg_utils", extra="vllm").EngineArgs(model=str(model), **options)
            sites = sites(ServedModel(arguments.create_model_config(), template_kwargs))
        self.sites = tuple(dict.fromkeys(sites))
        self._folder = tempfile.TemporaryDirectory(prefix="anydepth-states-")
        collect = {"sites": [str(site) for site in self.sites], "spool": self._folder.name}
        ours = engine_options(Settings(), collect=collect)
        self._llm: Any = vllm.LLM(model=str(model), **{"enforce_eager": True, **options, **ours})
        super().__init__(self._llm.llm_engine.vllm_config.model_config, template_kwargs)
        self._batches = 0

    @property
    def dtype(self) -> str:
        """The type that the model runs in, e.g. `bfloat16`."""
        return str(self._config.dtype).removeprefix("torch.")

    @property
    def context_length(self) -> int:
        """Longest text with a header that can be read: the engine samples one token behind it."""
        return self._config.max_model_len - 1

    def check_site(self, site: Site) -> None:
        """Raise UnsupportedModel unless the engine was started for this site."""
        if site not in self.sites:
            raise UnsupportedModel(
                f"site {site} cannot be read: the engine was started for {', '.join(map(str, self.sites))}"
            )

    def prove(self, needs: frozenset[Capability], reads: Sequence[Read]) -> None:
        """The engine has read from its sites while it started: it is built for them."""

    def read_batch(
        self,
        answers: Sequence[FinishedAnswer],
        sites: Sequence[Site],
        *,
        tokens: Sequence[int],
        suffix: Sequence[int] | None = None,
    ) -> Sequence[Mapping[Site, np.ndarray]]:
        """Hidden states at all depths of several finished answers; see `Reader.read_batch`."""
        for site in sites:
            self.check_site(site)
        self._batches += 1
        params = require("vllm", extra="vllm").SamplingParams
        asks = [ask for row, answer in enumerate(answers) for ask in self._asks(row, answer, tokens, suffix)]
        prompts: list[Any] = [{"prompt_token_ids": list(ask.ids)} for ask in asks]
        names = [f"{self._batches}-{index}" for index in range(len(asks))]
        sampling = [
            params(temperature=0.0, max_tokens=1, detokenize=False, extra_args={KEY: ask.extra(name)})
            for ask, name in zip(asks, names, strict=True)
        ]
        if asks:
            self._llm.generate(prompts, sampling, use_tqdm=False)
        width, places = self.identity.hidden_size, [self.sites.index(site) for site in sites]
        out = [np.zeros((len(sites), len(a.depths), len(tokens), width), np.float32) for a in answers]
        for ask, name in zip(asks, names, strict=True):
            found = self._take(name)[:, places]
            for (index, column), states in zip(ask.places + ask.means, found, strict=True):
                out[ask.row][:, index, column] = states / _divisor(tokens[column], answers[ask.row].depths[index])
        return [dict(zip(sites, states, strict=True)) for states in out]

    def _asks(
        self, row: int, answer: FinishedAnswer, tokens: Sequence[int], suffix: Sequence[int] | None
    ) -> list["_Ask"]:
        """The requests that read one answer: one a depth for single states, and the means in that of the deepest.

        That one comes first: the answer's tokens are computed in it, and the others share its cached prefix. Depth 0 is
        read in it, too, unless the prompt lacks a token of the header.
        """
        single = any(not is_mean(token) for token in tokens)
        means = [column for column, token in enumerate(tokens) if is_mean(token)] if answer.deepest else []
        for depth in answer.depths:
            self._check_depth(answer, depth, self._header(tokens, suffix))
        order = sorted(range(len(answer.depths)), key=lambda index: -answer.depths[index])
        asks = [self._ask(row, answer, index, tokens, suffix) for index in (order if single else order[: bool(means)])]
        if means:
            asks[0].ranges, asks[0].means = self._ranges(answer, tokens, means)
        if single and len(asks) > 1 and not answer.depths[order[-1]] and max(asks[-1].positions) < answer.prompt.start:
            first = asks.pop()  # depth 0 stands in the prompt, with which every request begins
            asks[0].positions += first.positions
            asks[0].places += first.places
        return asks

    def _ask(
        self, row: int, answer: FinishedAnswer, index: int, tokens: Sequence[int], suffix: Sequence[int] | None
    ) -> "_Ask":
        """The request for the single states at one depth."""
        start, depth = answer.prompt.start, answer.depths[index]
        text = answer.prompt.ids[:start] + answer.answer_ids[:depth]
        ask = _Ask(row, text + self._header(tokens, suffix))
        for column, token in enumerate(tokens):
            if not is_mean(token):
                own = self.template.position(answer.prompt, token, depth) if suffix is None else None
                ask.positions.append(len(text) + token if own is None else own)
                ask.places.append((index, column))
        return ask

    def _ranges(
        self, answer: FinishedAnswer, tokens: Sequence[int], columns: Sequence[int]
    ) -> tuple[list[list[int]], list[tuple[int, int]]]:
        """The ranges of positions that the means at all depths but 0 are taken over, and their cells."""
        start = answer.prompt.start
        cells = [(index, column) for index, depth in enumerate(answer.depths) if depth for column in columns]
        ends = [(answer.depths[index], -tokens[column]) for index, column in cells]
        return [[start + max(0, depth - length), start + depth] for depth, length in ends], cells

    def _header(self, tokens: Sequence[int], suffix: Sequence[int] | None) -> tuple[int, ...]:
        """What follows the text: the header or `suffix`, up to the last token of it that is read."""
        return tuple(self.header.ids if suffix is None else suffix)[: max(-1, *tokens) + 1]

    def _check_depth(self, answer: FinishedAnswer, depth: int, header: Sequence[int]) -> None:
        """Raise PromptError for a depth outside the answer, or beyond the engine's context."""
        if not 0 <= depth <= len(answer.answer_ids):
            raise PromptError(f"depth {depth} is outside the answer, which has {len(answer.answer_ids)} tokens")
        length = answer.prompt.start + depth
        if length + len(header) > self.context_length:
            raise PromptError(
                f"prompt and answer have {length} tokens, which with a check of {len(header)} and one more do "
                f"not fit the engine's context of {self.context_length + 1}; shorten them, or raise max_model_len"
            )

    def _take(self, name: str) -> np.ndarray:
        path = Path(self._folder.name) / f"{name}.npy"
        if not path.exists():
            raise CheckError(f"the engine wrote no states to {path}; is its process on another machine?")
        found = np.load(path)
        path.unlink()
        return found


def _divisor(token: int, depth: int) -> int:
    """What the engine's sum of states is divided by; a single state is not."""
    return mean_divisor(token, depth) if is_mean(token) else 1
