"""Hidden states of finished answers, read by vLLM with continuous batching: for `anydepth scan` and `collect`."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from anydepth.backends.protocol import Capability, FinishedAnswer, ModelIdentity, Read, Session, Site
from anydepth.errors import CapabilityError, CheckError, PromptError, UnsupportedModel
from anydepth.extras import require
from anydepth.settings import Settings
from anydepth.templates.template import Header, Prompt
from anydepth.vllm.launch import engine_options
from anydepth.vllm.report_field import KEY
from anydepth.vllm.served_model import VllmModel

Place = tuple[int, int, int]
"""Index of the depth, index of the token, position in the request that reads it."""


class VllmBackend:
    """Implements `read_batch` of `anydepth.backends.protocol.Backend` over a vLLM engine of its own.

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
        sites: Sequence[Site] | Callable[[VllmModel], Sequence[Site]],
        template_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        vllm = require("vllm", extra="vllm")
        if callable(sites):
            arguments = require("vllm.engine.arg_utils", extra="vllm").EngineArgs(model=str(model), **options)
            sites = sites(VllmModel(arguments.create_model_config(), template_kwargs))
        self.sites = tuple(dict.fromkeys(sites))
        self._spool = tempfile.TemporaryDirectory(prefix="anydepth-states-")
        collect = {"sites": [str(site) for site in self.sites], "spool": self._spool.name}
        ours = engine_options(Settings(), collect=collect)
        self._llm: Any = vllm.LLM(model=str(model), **{"enforce_eager": True, **options, **ours})
        self._facts = VllmModel(self._llm.llm_engine.vllm_config.model_config, template_kwargs)
        self.template = self._facts.template
        self._batches = 0

    @property
    def identity(self) -> ModelIdentity:
        """Which model this is."""
        return self._facts.identity

    @property
    def dtype(self) -> str:
        """The type that the model runs in, e.g. `bfloat16`."""
        return str(self._llm.llm_engine.vllm_config.model_config.dtype).removeprefix("torch.")

    @property
    def header(self) -> Header:
        """The Safety Tokens of the chat template."""
        return self._facts.header

    @property
    def context_length(self) -> int:
        """Longest text with a header that can be read: the engine samples one token behind it."""
        return self._llm.llm_engine.vllm_config.model_config.max_model_len - 1

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
        """Hidden states at all depths of several finished answers; see `Backend.read_batch`."""
        for site in sites:
            self.check_site(site)
        self._batches += 1
        prompts: list[dict[str, Any]] = []
        params: list[Any] = []
        plans: list[tuple[int, list[Place], str]] = []
        for row, answer in enumerate(answers):
            for ids, places in self._requests(answer, tokens, suffix):
                name = f"{self._batches}-{len(plans)}"
                asked = {"read": sorted({place for _, _, place in places}), "file": name}
                prompts.append({"prompt_token_ids": list(ids)})
                params.append(self._params(asked))
                plans.append((row, places, name))
        self._llm.generate(prompts, params, use_tqdm=False)
        width = self.identity.hidden_size
        out = [{site: np.empty((len(a.depths), len(tokens), width), np.float32) for site in sites} for a in answers]
        for row, places, name in plans:
            found = self._take(name)
            order = sorted({place for _, _, place in places})
            for depth, token, place in places:
                for site in sites:
                    out[row][site][depth, token] = found[order.index(place), self.sites.index(site)]
        return out

    def _requests(
        self, answer: FinishedAnswer, tokens: Sequence[int], suffix: Sequence[int] | None
    ) -> list[tuple[tuple[int, ...], list[Place]]]:
        """Token ids of the requests for one answer, and what is read in each."""
        start = answer.prompt.ids[: answer.prompt.start]
        header = tuple(self.header.ids if suffix is None else suffix)[: max(tokens) + 1]
        found = []
        for index, depth in enumerate(answer.depths):
            if not 0 <= depth <= len(answer.answer_ids):
                raise PromptError(f"depth {depth} is outside the answer, which has {len(answer.answer_ids)} tokens")
            text = start + answer.answer_ids[:depth]
            if len(text) + len(header) > self.context_length:
                raise PromptError(
                    f"prompt and answer have {len(text)} tokens, which with a check of {len(header)} and one more do "
                    f"not fit the engine's context of {self.context_length + 1}; shorten them, or raise max_model_len"
                )
            places = []
            for place, token in enumerate(tokens):
                own = self.template.position(answer.prompt, token, depth) if suffix is None else None
                places.append((index, place, len(text) + token if own is None else own))
            found.append((text + header, places))
        return found

    def _params(self, asked: dict[str, Any]) -> Any:
        params = require("vllm", extra="vllm").SamplingParams
        return params(temperature=0.0, max_tokens=1, detokenize=False, extra_args={KEY: asked})

    def _take(self, name: str) -> np.ndarray:
        path = Path(self._spool.name) / f"{name}.npy"
        if not path.exists():
            raise CheckError(f"the engine wrote no states to {path}; is its process on another machine?")
        found = np.load(path)
        path.unlink()
        return found

    # -- what only a session can do ------------------------------------------------------------------------------------

    def open(self, prompts: Sequence[Prompt], **options: Any) -> Session:
        """Answers under guard are the scheduler's: raises CapabilityError."""
        self._refuse("answers")

    def replay(self, prompt: Prompt, answer_ids: Sequence[int]) -> Session:
        """Raises CapabilityError: only fixed depths can be read."""
        self._refuse("replayed answers")

    def unguarded(self, prompts: Sequence[Prompt], **options: Any) -> list[tuple[int, ...]]:
        """Raises CapabilityError; use `vllm.LLM`."""
        self._refuse("answers")

    def _refuse(self, what: str) -> NoReturn:
        raise CapabilityError(
            f"VllmBackend reads finished answers and gives no {what}; start vLLM with engine_options for guarded ones"
        )

    def first_token_ids(self, texts: Sequence[str]) -> list[int]:
        """The first token of each text as the start of an answer."""
        return self._facts.first_token_ids(texts)

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`, special tokens left out."""
        return self._facts.decode_text(token_ids)
