"""A Transformers model, ready to be guarded."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from threading import RLock
from typing import Any

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from anydepth.backends.protocol import Capability, FinishedAnswer, ModelIdentity, Read, Site
from anydepth.backends.transformers import packed
from anydepth.backends.transformers.blocks import default_site, find_blocks, find_module, text_config
from anydepth.backends.transformers.branch import Branch
from anydepth.backends.transformers.caches import new_cache
from anydepth.backends.transformers.fork import fork_kinds
from anydepth.backends.transformers.generation_options import PLAIN, end_token_ids, vet_options
from anydepth.backends.transformers.handover import try_options
from anydepth.backends.transformers.identity import identify
from anydepth.backends.transformers.inputs import ForwardInputs
from anydepth.backends.transformers.prove import ANSWER_TOKENS, prove
from anydepth.backends.transformers.read import read
from anydepth.backends.transformers.replay_session import ReplaySession
from anydepth.backends.transformers.session import TransformersSession, seeded
from anydepth.errors import ConfigError, PromptError, TemplateError, UnsupportedModel
from anydepth.templates.template import ChatTemplate, Header, Prompt


class TransformersBackend:
    """A causal language model and its tokenizer; implements `anydepth.backends.protocol.Backend`.

    Args:
        model: A Transformers model with a generation head, or a PEFT model around one.
        tokenizer: Its tokenizer, with the chat template.
        template_kwargs: Extra arguments of the chat template, e.g. `{"enable_thinking": False}`.
        base_weights: With a PEFT adapter: read hidden states through the base weights, on a cache kept by them. The
            answer itself is still the adapter's (paper, section 5: a probe that fine-tuning cannot erode).

    Raises:
        ConfigError: `base_weights` is True and the model has no PEFT adapter.
        TemplateError: The tokenizer has no chat template, or no Safety Tokens can be derived from it.
    """

    capabilities = frozenset(Capability)
    batches_itself = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        template_kwargs: Mapping[str, Any] | None = None,
        base_weights: bool = False,
    ) -> None:
        self._peft = model if hasattr(model, "disable_adapter") and hasattr(model, "get_base_model") else None
        if base_weights and self._peft is None:
            raise ConfigError("base_weights=True, but the model has no PEFT adapter; load one with adapter=")
        self.model = self._peft.get_base_model() if self._peft is not None else model
        self.model.eval()
        self.tokenizer = tokenizer
        self.reads_base_weights = base_weights
        self.identity: ModelIdentity = identify(self.model)
        self.template = ChatTemplate(tokenizer, name=self.identity.name, template_kwargs=template_kwargs)
        self.inputs = ForwardInputs(self.model)
        self.packing_refused: str | None = None
        """Why several depths cannot be read in one pass, found out in a trial; None if nothing speaks against it."""
        self._proved: set[tuple[Any, ...]] = set()
        self.lock = RLock()
        """Held for one window or check at a time: there is one random state, and hooks are the model's."""

    @property
    def header(self) -> Header:
        """The Safety Tokens of the chat template."""
        return self.template.header

    @property
    def pad_id(self) -> int:
        """Id that fills the left of shorter prompts; masked, so any id does."""
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0

    @property
    def context_length(self) -> int | None:
        """Longest sequence the model's positions allow, or None if it has no limit."""
        return getattr(text_config(self.model), "max_position_embeddings", None)

    @property
    def packs(self) -> bool:
        """Whether all depths of an answer can be read in one packed pass."""
        return packed.refusal(self) is None

    def check_site(self, site: Site) -> None:
        """Raise UnsupportedModel if `site` does not exist in this model."""
        find_module(self.model, site)

    def prove(self, needs: frozenset[Capability], reads: Sequence[Read]) -> None:
        """Make one check of each needed kind on a short prompt; UnsupportedModel if one fails. See `Backend.prove`."""
        wanted = (needs, tuple(reads))
        if wanted in self._proved:
            return
        try:
            self._try(*wanted)
        except UnsupportedModel as error:
            remedy = "guard it through a server of its own, with a look-ahead detector"
            if (kind := self.model.generation_config.cache_implementation) is not None:
                remedy = f"take cache_implementation ({kind}) out of the model's generation config, or {remedy}"
            if reads:
                with suppress(UnsupportedModel):
                    self._try(frozenset({Capability.LOOK_AHEAD}), ())
                    remedy = "use a detector that looks ahead instead of reading a state (Rethink), or another site"
            raise UnsupportedModel(f"{error}; {remedy}") from error
        self._proved.add(wanted)

    def _try(self, needs: frozenset[Capability], reads: tuple[Read, ...]) -> None:
        prompt = self.template.prompt("Hello")
        try:
            self._budget(len(prompt.ids), 1)
        except PromptError as error:
            raise TemplateError(
                f"{self.identity.name} cannot be asked anything: with its chat template even a message of one word "
                f"does not fit ({error}); give the template a shorter default system prompt, or the model more context"
            ) from error
        # the cache is of the kind that answers and checks will be on, the model's own
        options = {
            name: value for name, value in _GREEDY.items() if name not in ("cache_implementation", "cache_config")
        }
        with self.lock:
            session = TransformersSession(self, [prompt], budget=ANSWER_TOKENS, seed=0, options=options)
            try:
                prove(self, needs, reads, prompt, session)
            finally:
                session.close()

    # -- sessions ------------------------------------------------------------------------------------------------------

    def open(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, seed: int | None = None, **options: Any
    ) -> TransformersSession:
        """Start answers to `prompts`; `options` are those of `generate`, e.g. `do_sample`, `stop_strings`.

        Raises:
            PromptError: There is no prompt, or one does not fit the model's context.
            ConfigError: An option does not exist or cannot be guarded; the message says why.
            UnsupportedModel: An option needs something that this model cannot do.
        """
        if not prompts:
            raise PromptError("there is no prompt to answer; give at least one")
        options = vet_options(self.model.generation_config, options, sees_history=self.inputs.slices_history)
        length = max(len(prompt.ids) for prompt in prompts)
        options = self._pin_minimum(options, length)
        budget = self._budget(length, max_new_tokens)
        with self.lock:  # seeding it passes through the random state that a window of another thread may be using
            try_options(self.model, self.inputs.cache_name, options)
            return TransformersSession(self, prompts, budget=budget, seed=seed, options=options)

    def replay(self, prompt: Prompt, answer_ids: Sequence[int]) -> ReplaySession:
        """Open a session that is fed the given answer; PromptError if it is empty or does not fit the context."""
        if not answer_ids:
            raise PromptError("the answer to replay is empty; only its depth 0 could be checked")
        self._budget(len(prompt.ids), 1, len(answer_ids))
        return ReplaySession(self, [prompt], [answer_ids])

    def replay_batch(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], stopped: Sequence[bool], *, eos: int
    ) -> ReplaySession:
        """Open a session that is fed several answers; `stopped` ones end their turn with their last token or `eos`.

        Raises:
            PromptError: An answer is empty, or does not fit the context with its prompt.
        """
        if not all(answers):
            raise PromptError("an answer to replay is empty; leave it out")
        self._budget(max(len(prompt.ids) for prompt in prompts), 1, max(map(len, answers)))
        return ReplaySession(self, prompts, answers, stopped, eos=eos)

    def unguarded(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, seed: int | None = None, **options: Any
    ) -> list[tuple[int, ...]]:
        """Tokens of one plain `model.generate` call per prompt, without a guard: guarded answers are compared to it."""
        answers = []
        for prompt in prompts:
            ids = torch.tensor([prompt.ids], device=self.model.device)
            with self.lock, seeded(seed, self.model.device), torch.no_grad():
                out = self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=max_new_tokens,
                    tokenizer=self.tokenizer,
                    **{"pad_token_id": self.pad_id, **options},
                )
            answers.append(tuple(out[0, ids.shape[1] :].tolist()))
        return answers

    def _budget(self, length: int, wanted: int, needed: int = 1) -> int:
        """How many of `wanted` tokens fit; PromptError if not even `needed` do."""
        if self.context_length is None:
            return wanted
        room = self.context_length - length - len(self.header.ids) - len(self.header.answer_ids)
        if room < needed:
            raise PromptError(
                f"prompt and prefill have {length} tokens, and {needed} more with a check of {len(self.header.ids)} "
                f"do not fit the model's context of {self.context_length}; shorten them"
            )
        return min(wanted, room)

    def _pin_minimum(self, options: dict[str, Any], length: int) -> dict[str, Any]:
        """Turn `min_new_tokens` into a total length: each window would count it anew."""
        asked = options.get("min_new_tokens", self.model.generation_config.min_new_tokens)
        if not asked:
            return options
        return {**options, "min_new_tokens": None, "min_length": length + asked}

    def new_cache(self, length: int, options: dict[str, Any]) -> Any:
        """A cache for `length` tokens and a check, of the kind that `options` ask for (taken out of them)."""
        return new_cache(self.model, length + len(self.header.ids) + len(self.header.answer_ids), options)

    def end_tokens(self, options: Mapping[str, Any]) -> frozenset[int]:
        """Ids that end a turn."""
        return end_token_ids(self.model.generation_config, options)

    # -- forward passes ------------------------------------------------------------------------------------------------

    def generate(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        cache: Any,
        n: int,
        stop: StoppingCriteria,
        options: Mapping[str, Any],
    ) -> torch.Tensor:
        """One window: up to `n` tokens after `ids` `[b, t]` by the library's own `generate`, on `cache`."""
        with torch.no_grad(), warnings.catch_warnings():
            # A minimum of the whole answer is no mistake in one of its windows.
            warnings.filterwarnings("ignore", message="Unfeasible length constraints")
            return self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=n,
                stopping_criteria=StoppingCriteriaList([stop]),
                **{"pad_token_id": self.pad_id, self.inputs.cache_name: cache, **options},
            )

    def read_branch(self, branch: Branch, sites: tuple[Site, ...]) -> dict[Site, torch.Tensor]:
        """States of the tail of every row, per site `[b, t, hidden_size]`; the pass ends at the last site."""
        return self.read_tokens(branch.tail, self._cache_of(branch), branch.whole_mask, sites)

    def read_tokens(
        self, ids: torch.Tensor, cache: Any, mask: torch.Tensor, sites: tuple[Site, ...]
    ) -> dict[Site, torch.Tensor]:
        """Run the new tokens `ids` `[b, t]` over `cache` up to the last of `sites`; per site `[b, t, hidden_size]`."""
        with self._reading_weights():
            steps = [read(self.model, sites, inputs) for inputs in self.inputs.steps(ids, cache, mask)]
        return {site: torch.cat([step[site] for step in steps], 1) for site in sites}

    def next_logprobs(self, branch: Branch) -> torch.Tensor:
        """Log-probabilities of the token after every row, `[b, vocab_size]`."""
        logits = self.feed(branch.tail, self._cache_of(branch), branch.whole_mask)
        return logits.float().log_softmax(-1)

    def feed(self, ids: torch.Tensor, cache: Any, mask: torch.Tensor) -> torch.Tensor:
        """Run the new tokens `ids` `[b, t]` over `cache`; logits after the last one `[b, vocab_size]`."""
        logits = torch.empty(0)
        with torch.no_grad():
            for inputs in self.inputs.steps(ids, cache, mask):
                if self.inputs.keeps_logits:
                    inputs["logits_to_keep"] = 1
                logits = self.model(**inputs).logits
        return logits[:, -1]

    def _cache_of(self, branch: Branch, room: int = 0) -> Any:
        return branch.cache if branch.cache is not None else self.new_cache(branch.tail.shape[1] + room, {})

    def continue_branch(self, branch: Branch, max_new_tokens: int, decided: Callable[[str], bool]) -> list[str]:
        """Greedy text after every row, each stopped once `decided`."""
        cache, ids, mask = self._cache_of(branch, max_new_tokens), branch.tail, branch.whole_mask
        if not self.inputs.takes_chunks and ids.shape[1] > 1:
            self.feed(ids[:, :-1], cache, mask[:, :-1])
            ids = ids[:, -1:]
        if self.inputs.slices_history:
            ids = torch.cat([branch.history, branch.tail], 1)
        else:
            mask = torch.ones_like(ids)
        stop = _Decided(ids.shape[1], self.decode_text, decided)
        out = self.generate(ids, mask, cache, max_new_tokens, stop, _GREEDY)
        return [self.decode_text(row) for row in out[:, ids.shape[1] :].tolist()]

    def read_batch(
        self,
        answers: Sequence[FinishedAnswer],
        sites: Sequence[Site],
        *,
        tokens: Sequence[int],
        suffix: Sequence[int] | None = None,
    ) -> Sequence[Mapping[Site, np.ndarray]]:
        """States at all depths of several answers in one packed pass; see `Backend.read_batch`."""
        with self.lock, self._reading_weights():
            return packed.read_batch(self, answers, tuple(sites), tokens=tokens, suffix=suffix)

    def _reading_weights(self) -> AbstractContextManager[Any]:
        return self._peft.disable_adapter() if self._peft is not None and self.reads_base_weights else nullcontext()

    # -- text and facts ------------------------------------------------------------------------------------------------

    def first_token_ids(self, texts: Sequence[str]) -> list[int]:
        """The first token of each text as the start of an answer."""
        return [self.tokenizer.encode(text, add_special_tokens=False)[0] for text in texts]

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`, special tokens left out."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def describe(self) -> dict[str, Any]:
        """Facts for `anydepth inspect`: blocks, default site, how each cache layer is forked, whether packing works."""
        cache = new_cache(self.model, 32, {})
        reason = packed.refusal(self)
        return {
            "layers": len(find_blocks(self.model)),
            "hidden_size": self.identity.hidden_size,
            "default_site": str(default_site(self.model)),
            "context_length": self.context_length,
            "cache": [{"layer": layer, "fork": kind, "count": count} for layer, kind, count in fork_kinds(cache)],
            "packed": reason is None,
            "packed_reason": reason,
        }


class _Decided(StoppingCriteria):
    """Stops a row's look-ahead once its text needs no more tokens to be judged."""

    def __init__(self, skip: int, decode: Callable[[list[int]], str], decided: Callable[[str], bool]) -> None:
        self._skip, self._decode, self._decided = skip, decode, decided

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> Any:
        """Whether each row is decided, bool `[batch]`."""
        done = [self._decided(self._decode(row)) for row in input_ids[:, self._skip :].tolist()]
        return torch.tensor(done, device=input_ids.device)


_KEPT = {"max_new_tokens", "eos_token_id", "pad_token_id", "compile_config", "disable_compile", "prefill_chunk_size"}
# A look-ahead is greedy whatever the answer's sampling is, and whatever the model's generation config says, but for
# where a turn ends.
_GREEDY: Mapping[str, Any] = {name: value for name, value in PLAIN.items() if name not in _KEPT}
