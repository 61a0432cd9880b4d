"""Hidden states of finished answers, read by vLLM with continuous batching: for `anydepth scan` and `collect`."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.backends.protocol import Capability, FinishedAnswer, Read, Site
from anydepth.errors import CheckError, PromptError, UnsupportedModel
from anydepth.extras import require
from anydepth.settings import Settings
from anydepth.vllm.launch import engine_options
from anydepth.vllm.report_field import KEY
from anydepth.vllm.served_model import ServedModel


class VllmBackend(ServedModel):
    """Implements `anydepth.backends.protocol.Reader` over a vLLM engine of its own.

    Each depth of each answer is one request of one token, text up to the depth and header; the prefix cache lets the
    requests of one answer share the text, and vLLM batches those of all answers.

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
        prompts: list[dict[str, Any]] = []
        sampling: list[Any] = []
        plans: list[tuple[int, int, str]] = []
        for row, answer in enumerate(answers):
            for index, (ids, positions) in enumerate(self._requests(answer, tokens, suffix)):
                plans.append((row, index, name := f"{self._batches}-{len(plans)}"))
                prompts.append({"prompt_token_ids": list(ids)})
                asked = {KEY: {"read": positions, "file": name}}
                sampling.append(params(temperature=0.0, max_tokens=1, detokenize=False, extra_args=asked))
        self._llm.generate(prompts, sampling, use_tqdm=False)
        width = self.identity.hidden_size
        out = [{site: np.empty((len(a.depths), len(tokens), width), np.float32) for site in sites} for a in answers]
        for row, index, name in plans:
            found = self._take(name)
            for site in sites:
                out[row][site][index] = found[:, self.sites.index(site)]
        return out

    def _requests(
        self, answer: FinishedAnswer, tokens: Sequence[int], suffix: Sequence[int] | None
    ) -> Iterator[tuple[tuple[int, ...], list[int]]]:
        """For each depth the token ids of the request, and the positions where `tokens` stand in it."""
        start = answer.prompt.ids[: answer.prompt.start]
        header = tuple(self.header.ids if suffix is None else suffix)[: max(tokens) + 1]
        for depth in answer.depths:
            if not 0 <= depth <= len(answer.answer_ids):
                raise PromptError(f"depth {depth} is outside the answer, which has {len(answer.answer_ids)} tokens")
            text = start + answer.answer_ids[:depth]
            if len(text) + len(header) > self.context_length:
                raise PromptError(
                    f"prompt and answer have {len(text)} tokens, which with a check of {len(header)} and one more do "
                    f"not fit the engine's context of {self.context_length + 1}; shorten them, or raise max_model_len"
                )
            positions = []
            for token in tokens:
                own = self.template.position(answer.prompt, token, depth) if suffix is None else None
                positions.append(len(text) + token if own is None else own)
            yield text + header, positions

    def _take(self, name: str) -> np.ndarray:
        path = Path(self._folder.name) / f"{name}.npy"
        if not path.exists():
            raise CheckError(f"the engine wrote no states to {path}; is its process on another machine?")
        found = np.load(path)
        path.unlink()
        return found
