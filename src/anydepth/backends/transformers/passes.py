"""The forward passes of one model: whatever decodes an answer, reads a state or looks ahead runs them."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import RLock
from typing import Any

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from anydepth.backends.conversed import written
from anydepth.backends.protocol import Capability, ModelIdentity, Read, Site, last_header_token, sites_of
from anydepth.backends.transformers.answer_states import AnswerSpan
from anydepth.backends.transformers.blocks import text_config
from anydepth.backends.transformers.branch import Branch
from anydepth.backends.transformers.caches import new_cache
from anydepth.backends.transformers.generation_options import PLAIN
from anydepth.backends.transformers.grammar import Grammars
from anydepth.backends.transformers.identity import identify
from anydepth.backends.transformers.inputs import CACHE_NAMES, ForwardInputs
from anydepth.backends.transformers.kept_texts import KeptTexts
from anydepth.backends.transformers.read import read, to_numpy
from anydepth.backends.transformers.ride import Ridden, answering, cache_refusal, check_ride
from anydepth.backends.transformers.soft_tokens import fed_instead
from anydepth.errors import ConfigError, PromptError, UnsupportedModel
from anydepth.templates.template import ChatTemplate, Header

_KEPT = {"max_new_tokens", "eos_token_id", "pad_token_id", "compile_config", "disable_compile", "prefill_chunk_size"}
# A look-ahead is greedy whatever the answer's sampling and the generation config say, but for where a turn ends.
GREEDY: Mapping[str, Any] = {name: value for name, value in PLAIN.items() if name not in _KEPT}


class Passes:
    """A causal language model and its tokenizer, and the passes that sessions, scans and trials run on them.

    Args:
        model: A Transformers model with a generation head, or a PEFT model around one.
        tokenizer: Its tokenizer, with the chat template.
        template_kwargs: Extra arguments of the chat template, e.g. `{"enable_thinking": False}`.
        base_weights: With a PEFT adapter: read hidden states through the base weights, on a cache kept by them. The
            answer itself is still the adapter's (paper, section 5: a probe that fine-tuning cannot erode).
        ride: Whether checks ride in the decode step: `never`; `auto`, where that can be done; `always`, and a model
            that it cannot be done with is an error.

    Attributes:
        model: The model, without what PEFT puts around it; an adapter is part of its layers.
        adapter: Whether the model has a PEFT adapter.
        reads_base_weights: Whether hidden states are read through the weights below the adapter.
        reading_weights: The context in which hidden states are read: the adapter is off in it with `base_weights`.
        identity: Which model it is.
        template: What anydepth knows of the chat template.
        inputs: How the model takes new tokens.
        grammars: Compiles grammars that answers are held to.
        gguf_format: Number format of the GGUF file that the weights were read from, e.g. `Q4_K_M`; None of other files.
        proved: The kinds of check, and what they read, that worked in a trial.
        packing_refused: Why several depths cannot be read in one pass, found out in a trial; None if nothing speaks
            against it.
        ride: As it was given.
        riding_refused: Why checks cannot ride, found out in a trial; None if nothing speaks against it.
        kept: The caches of answers, which a check of a text that goes on from one of them may use.
        lock: Held for one window or check at a time: there is one random state, and hooks are the model's.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        template_kwargs: Mapping[str, Any] | None = None,
        base_weights: bool = False,
        ride: str = "never",
    ) -> None:
        check_ride(ride)
        self.adapter = hasattr(model, "disable_adapter") and hasattr(model, "get_base_model")
        if base_weights and not self.adapter:
            raise ConfigError("base_weights=True, but the model has no PEFT adapter; load one with adapter=")
        self.model = model.get_base_model() if self.adapter else model
        self.model.eval()
        self.tokenizer = tokenizer
        self.reads_base_weights = base_weights
        self.reading_weights: Callable[[], AbstractContextManager[Any]] = (
            model.disable_adapter if base_weights else nullcontext
        )
        self.identity: ModelIdentity = identify(self.model)
        self.template = ChatTemplate(tokenizer, name=self.identity.name, template_kwargs=template_kwargs)
        self.inputs = ForwardInputs(self.model)
        self.grammars = Grammars(tokenizer, getattr(text_config(self.model), "vocab_size", 0))
        self.gguf_format: str | None = None
        self.proved: set[tuple[frozenset[Capability], tuple[Read, ...], bytes | None]] = set()
        self.packing_refused: str | None = None
        self.ride = ride
        self.riding_refused: str | None = None
        self.kept = KeptTexts(None if base_weights else self.model)
        self.lock = RLock()
        if ride == "always":
            self.rides({})

    @property
    def header(self) -> Header:
        """The Safety Tokens of the chat template."""
        return self.template.header

    @property
    def pad_id(self) -> int:
        """Id that fills the left of shorter prompts; masked, so any id does."""
        candidates = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((int(candidate) for candidate in candidates if candidate is not None), 0)

    @property
    def context_length(self) -> int | None:
        """Longest sequence the model's positions allow, in tokens, or None if it has no limit."""
        return getattr(text_config(self.model), "max_position_embeddings", None)

    def budget(self, length: int, wanted: int, needed: int = 1) -> int:
        """How many of `wanted` tokens fit behind `length` tokens, a check included.

        Raises PromptError if not even `needed` fit.
        """
        if self.context_length is None:
            return wanted
        room = self.context_length - length - len(self.header.ids) - len(self.header.answer_ids)
        if room < needed:
            raise PromptError(
                f"prompt and prefill have {length} tokens, and {needed} more with a check of {len(self.header.ids)} "
                f"do not fit the model's context of {self.context_length}; shorten them"
            )
        return min(wanted, room)

    def new_cache(self, length: int, options: dict[str, Any]) -> Any:
        """A cache for `length` tokens and a check, of the kind that `options` ask for (taken out of them)."""
        return new_cache(self.model, length + len(self.header.ids) + len(self.header.answer_ids), options)

    def ride_refusal(self, options: Mapping[str, Any]) -> str | None:
        """Why checks cannot ride in the decode steps of answers with these options of `generate`, or None.

        Raises what `new_cache` raises for a kind of cache that there is not.
        """
        if self.reads_base_weights:
            return "states are read through the base weights, and the decode step runs the adapter"
        cache = new_cache(self.model, 8, dict(options))
        return self.riding_refused or cache_refusal(cache, len(self.header.ids))

    def rides(self, options: Mapping[str, Any]) -> bool:
        """Whether checks ride in the decode steps of answers with these options, as far as `ride` lets them.

        Raises UnsupportedModel if they cannot where `ride` is `always`.
        """
        if self.ride == "never":
            return False
        why = self.ride_refusal(options)
        if why is not None and self.ride == "always":
            raise UnsupportedModel(
                f"ride is 'always', but checks of {self.identity.name} cannot ride in the decode step: {why}; give "
                "ride='auto', which reads on a fork where it must, or ride='never'"
            )
        return why is None

    def end_tokens(self, options: Mapping[str, Any]) -> frozenset[int]:
        """Ids that end a turn, by these options of `generate` or the model's generation config."""
        ends = options.get("eos_token_id", self.model.generation_config.eos_token_id)
        return frozenset() if ends is None else frozenset(map(int, [ends] if isinstance(ends, int) else ends))

    # -- passes --------------------------------------------------------------------------------------------------------

    def generate(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        cache: Any,
        n: int,
        stop: StoppingCriteria,
        options: Mapping[str, Any],
        *,
        first: Ridden | None = None,
    ) -> tuple[torch.Tensor, Any]:
        """One window: up to `n` tokens after `ids` `[b, t]` by the library's own `generate`, on `cache`.

        `mask` is 1 for tokens and 0 for padding. With `first`, a check has fed the last token already: `generate` gets
        what that pass gave instead of a first pass of its own, and with it `cache`, which holds the whole text.

        Returns:
            The ids that were given and the new ones, `[b, t + new]`, and the cache that holds them all but the last:
            another one than `cache` where the library had to start anew (`ForwardInputs.switches_at`).
        """
        more = {} if self.inputs.switches_at is None else {"return_dict_in_generate": True}
        model, given = (self.model, cache) if first is None else (answering(self.model, first.output), first.before)
        chunk = options.get("prefill_chunk_size", self.model.generation_config.prefill_chunk_size)
        if chunk is not None and cache.get_seq_length():  # Transformers 5.16 would feed the cached tokens once more
            options = {**options, "prefill_chunk_size": None}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unfeasible length constraints")  # a minimum of the whole answer
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=n,
                stopping_criteria=StoppingCriteriaList([stop]),
                **{"pad_token_id": self.pad_id, self.inputs.cache_name: given, **options, **more},
            )
        if not more:
            return out, cache
        return out.sequences, next(out[name] for name in CACHE_NAMES if out.get(name) is not None)

    def read_branch(
        self, branch: Branch, sites: tuple[Site, ...], embeddings: np.ndarray | None = None
    ) -> dict[Site, torch.Tensor]:
        """States of the tail of every row, `[b, t, hidden_size]` per site; the pass ends at the last site.

        The last tokens of the tail are read as `embeddings`, float32 `[tokens, hidden_size]`, if there are any.
        """
        ids, cache, mask = self._ready(branch)
        _ = self.inputs.takes_chunks  # a recurrent model is tried out when this is first asked: not inside the context
        instead = range(ids.shape[1] - (0 if embeddings is None else len(embeddings)), ids.shape[1])
        with fed_instead(self.model, embeddings, instead):
            states = self.read_tokens(ids, cache, mask, sites)
        return {site: each[:, each.shape[1] - branch.tail.shape[1] :] for site, each in states.items()}

    def run_header(
        self, branch: Branch, reads: Sequence[Read], embeddings: np.ndarray | None = None
    ) -> dict[Site, torch.Tensor]:
        """States of the tail and, behind it, of the header as far as `reads` need it: `[b, t + h, hidden_size]`.

        Empty where there is nothing to run: all reads are means, and the tail has no token. `embeddings`, float32
        `[tokens, hidden_size]`, stand in the place of the header if there are any.
        """
        if embeddings is not None:
            return self.read_branch(branch.append(self.stand_ins(embeddings)), sites_of(reads), embeddings)
        whole = branch.append(self.header.ids[: last_header_token(reads) + 1])
        return self.read_branch(whole, sites_of(reads)) if whole.tail.shape[1] else {}

    def stand_ins(self, embeddings: np.ndarray | torch.Tensor) -> tuple[int, ...]:
        """Ids that are fed with `embeddings` `[tokens, hidden_size]`, which no state depends on.

        Raises:
            UnsupportedModel: There are more of them than header tokens: no room is kept behind an answer for these.
        """
        if len(embeddings) > len(self.header.ids):
            raise UnsupportedModel(
                f"there are {len(embeddings)} trained Safety Tokens, and room for the {len(self.header.ids)} of the "
                "template's header is kept behind an answer; train fewer"
            )
        return tuple(self.header.ids[: len(embeddings)])

    def read_header(
        self, branch: Branch, reads: Sequence[Read], answers: AnswerSpan, embeddings: np.ndarray | None = None
    ) -> np.ndarray:
        """Run the header behind every row and make all `reads`: float32 `[b, len(reads), hidden_size]`.

        Args:
            branch: The rows; at least one token is in their tail if a read is of the last token before the header.
            reads: What to read.
            answers: Where the answers stand in the branch, for the reads that are means.
            embeddings: What stands in the place of the header, float32 `[tokens, hidden_size]`, if anything does.
        """
        states = self.run_header(branch, reads, embeddings)
        return self.make_reads(states, branch.tail.shape[1], reads, answers, branch.length)

    def make_reads(
        self, states: Mapping[Site, torch.Tensor], begin: int, reads: Sequence[Read], answers: AnswerSpan, end: int
    ) -> np.ndarray:
        """All `reads` out of the states of some tokens: float32 `[b, len(reads), hidden_size]`.

        Args:
            states: `[b, begin + h, hidden_size]` per site, of tokens of the text and of the header behind them.
            begin: How many of the tokens belong to the text.
            reads: What to read.
            answers: Where the answers stand in the text, for the reads that are means.
            end: How many columns the text has.
        """
        found = []
        for each in reads:
            at_site = states.get(each.site)
            if each.is_mean:
                tail = None if at_site is None else at_site[:, :begin]
                found.append(answers.means(each.site, each.token, tail, end))
            else:
                assert at_site is not None  # the header, or the token before it, was run
                found.append(at_site[:, begin + each.token])
        return np.stack([to_numpy(each) for each in found], 1)

    def read_tokens(
        self, ids: torch.Tensor, cache: Any, mask: torch.Tensor, sites: tuple[Site, ...]
    ) -> dict[Site, torch.Tensor]:
        """Run the new tokens `ids` `[b, t]` over `cache` up to the last of `sites`; `[b, t, hidden_size]` per site."""
        with self.reading_weights():
            steps = [read(self.model, sites, inputs) for inputs in self.inputs.steps(ids, cache, mask)]
        return {site: torch.cat([step[site] for step in steps], 1) for site in sites}

    def next_logprobs(self, branch: Branch) -> torch.Tensor:
        """Log-probabilities of the token after every row, float32 `[b, vocab_size]`."""
        logits = self.feed(*self._ready(branch))
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
        out, _ = self.generate(ids, mask, cache, max_new_tokens, stop, GREEDY)
        return [written(row, self.pad_id, self.decode_text) for row in out[:, ids.shape[1] :].tolist()]

    def _ready(self, branch: Branch) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """What of a branch is to be fed over which cache, and the mask over both: the tail, or the whole text anew."""
        if branch.cache is not None and self.inputs.starts_anew(branch.mask.shape[1], branch.length):
            whole = torch.cat([branch.history, branch.tail], 1)
            return whole, self.new_cache(whole.shape[1], {}), branch.whole_mask
        return branch.tail, self._cache_of(branch), branch.whole_mask

    def _cache_of(self, branch: Branch, room: int = 0) -> Any:
        return branch.cache if branch.cache is not None else self.new_cache(branch.tail.shape[1] + room, {})

    # -- text ----------------------------------------------------------------------------------------------------------

    def first_token_ids(self, texts: Sequence[str]) -> list[int]:
        """The first token of each text as the start of an answer."""
        return [self.tokenizer.encode(text, add_special_tokens=False)[0] for text in texts]

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`, special tokens left out."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


class _Decided(StoppingCriteria):
    """Stops a row's look-ahead once its text needs no more tokens to be judged."""

    def __init__(self, skip: int, decode: Callable[[list[int]], str], decided: Callable[[str], bool]) -> None:
        self._skip, self._decode, self._decided = skip, decode, decided

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> Any:
        """Bool `[batch]`."""
        done = [self._decided(self._decode(row)) for row in input_ids[:, self._skip :].tolist()]
        return torch.tensor(done, device=input_ids.device)
