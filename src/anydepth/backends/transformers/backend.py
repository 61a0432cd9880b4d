"""A Transformers model, ready to be guarded."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from anydepth.backends.protocol import Capability, FinishedAnswer, Read, Site
from anydepth.backends.transformers import packed
from anydepth.backends.transformers.blocks import NOT_HERE, default_site, find_blocks, find_module, readable_blocks
from anydepth.backends.transformers.cached_texts import CachedTexts
from anydepth.backends.transformers.fork import fork_kinds
from anydepth.backends.transformers.generation_options import vet_options
from anydepth.backends.transformers.grammar import Grammar, constrained
from anydepth.backends.transformers.handover import try_options
from anydepth.backends.transformers.passes import Passes
from anydepth.backends.transformers.prove import TrialCheck, WantedCheck, prove
from anydepth.backends.transformers.randomness import seeded
from anydepth.backends.transformers.replay_session import ReplaySession
from anydepth.backends.transformers.resumed_session import ResumedSession
from anydepth.backends.transformers.riding_session import RidingSession
from anydepth.backends.transformers.session import TransformersSession
from anydepth.errors import AnydepthError, ConfigError, PromptError, TemplateError, UnsupportedCache, UnsupportedModel
from anydepth.templates.template import Prompt


class TransformersBackend(Passes):
    """A causal language model and its tokenizer; implements `anydepth.backends.protocol.Backend`.

    Its arguments and attributes are those of `Passes`, which its sessions run on.
    """

    capabilities = frozenset(Capability) - {Capability.TOKEN_TEXTS}
    batches_itself = False

    @property
    def packs(self) -> bool:
        """Whether all depths of an answer can be read in one packed pass."""
        return packed.refusal(self) is None

    def check_site(self, site: Site) -> None:
        """Raise UnsupportedModel if `site` does not exist in this model."""
        find_module(self.model, site)

    def self_test(self) -> list[dict[str, Any]]:
        """Try every kind of check at the default site, as `Guard` does for the kinds that its detector needs.

        Returns:
            One mapping a kind: `check` (state, packed or look-ahead), `works`, and `detail`: what was measured, or why
            it does not work.
        """
        found = []
        try:
            reads = (Read(default_site(self.model), self.header.read_index),)
            trial = self._try(frozenset({Capability.HIDDEN_STATES}), reads)
            packs = trial.packed is not None
            why = f"off by {trial.packed:.1e}" if packs else packed.refusal(self)
            detail = f"two readings differ by {trial.again:.1e}, a fork and the whole text by {trial.whole:.1e}"
            found += [("state", True, f"at {reads[0]}: {detail}"), ("packed", packs, why)]
        except AnydepthError as error:
            found += [("state", False, str(error)), ("packed", False, "no state can be read")]
        try:
            self._try(frozenset({Capability.LOOK_AHEAD}), ())
            found.append(("look-ahead", True, "text and next token after the header, on a fork"))
        except AnydepthError as error:
            found.append(("look-ahead", False, str(error)))
        return [dict(zip(("check", "works", "detail"), each, strict=True)) for each in found]

    def prove(
        self, needs: frozenset[Capability], reads: Sequence[Read], *, embeddings: np.ndarray | None = None
    ) -> None:
        """Make one check of each needed kind on a short prompt; UnsupportedModel if one fails. See `Backend.prove`."""
        wanted = (needs, tuple(reads), None if embeddings is None else embeddings.tobytes())
        if wanted in self.proved:
            return
        try:
            self._try(needs, tuple(reads), embeddings)
        except UnsupportedModel as error:
            remedy = NOT_HERE
            if (kind := self.model.generation_config.cache_implementation) is not None:
                remedy = f"take cache_implementation ({kind}) out of the model's generation config, or {remedy}"
            if reads:
                with suppress(UnsupportedModel):
                    self._try(frozenset({Capability.LOOK_AHEAD}), ())
                    remedy = "use a detector that looks ahead instead of reading a state (Rethink), or another site"
            raise UnsupportedModel(f"{error}; {remedy}") from error
        self.proved.add(wanted)

    def _try(
        self, needs: frozenset[Capability], reads: tuple[Read, ...], embeddings: np.ndarray | None = None
    ) -> TrialCheck:
        prompt = self.template.prompt("Hello")
        try:
            self.budget(len(prompt.ids), 1)
        except PromptError as error:
            raise TemplateError(
                f"{self.identity.name} cannot be asked anything: with its chat template even a message of one word "
                f"does not fit ({error}); give the template a shorter default system prompt, or the model more context"
            ) from error
        return prove(self, WantedCheck(needs, reads, embeddings), prompt)

    # -- sessions ------------------------------------------------------------------------------------------------------

    def open(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, seed: int | None = None, **options: Any
    ) -> TransformersSession:
        """Start answers to `prompts`; `options` are those of `generate`, e.g. `do_sample`, `stop_strings`.

        One option is our own: `grammar`, what every answer is held to from its first token on. It is a JSON Schema
        (a mapping), a grammar in llguidance's variant of Lark (text), or what `grammar` has compiled.

        Raises:
            PromptError: There is no prompt, or one does not fit the model's context.
            ConfigError: An option does not exist or cannot be guarded; the message says why.
            UnsupportedModel: An option needs something that this model cannot do.
        """
        if not prompts:
            raise PromptError("there is no prompt to answer; give at least one")
        grammar = self._grammar_of(prompts, options)
        options = vet_options(self.model.generation_config, options, sees_history=self.inputs.slices_history)
        length = max(len(prompt.ids) for prompt in prompts)
        options = constrained(options, grammar, rows=len(prompts), begin=length)
        # each window would count `min_new_tokens` anew, so it is turned into a total length
        if asked := options.get("min_new_tokens", self.model.generation_config.min_new_tokens):
            options |= {"min_new_tokens": None, "min_length": length + asked}
        budget = self.budget(length, max_new_tokens)
        self._allow_batch(prompts, length + budget)
        with self.lock:  # seeding it passes through the random state that a window of another thread may be using
            try_options(self.model, self.inputs.cache_name, options)
            kind = RidingSession if self.rides(options) else TransformersSession
            session = kind(self, prompts, budget=budget, seed=seed, options=options)
            self.kept.begin(session)
            return session

    def grammar(self, grammar: str | Mapping[str, Any]) -> Grammar:
        """Compile a JSON Schema (a mapping) or a grammar in llguidance's variant of Lark (text), for `grammar=`.

        Raises:
            MissingExtra: llguidance is not installed.
            ConfigError: It cannot be read or is too complex, or the model has no token that ends a turn.
            UnsupportedModel: The tokenizer is not a fast one, or llguidance cannot read it.
        """
        return self.grammars.compile(grammar, self.end_tokens({}))

    def _grammar_of(self, prompts: Sequence[Prompt], options: dict[str, Any]) -> Grammar | None:
        """What the option `grammar`, which is taken out, holds the answers to `prompts` to."""
        if (grammar := options.pop("grammar", None)) is None:
            return None
        if any(prompt.prefill for prompt in prompts):
            raise ConfigError("grammar holds an answer from its first token on, and there is a prefill; leave one out")
        if not self.inputs.slices_history:
            raise UnsupportedModel(
                "grammar looks at earlier tokens, which a purely recurrent model is not fed again; leave it out"
            )
        return self.grammars.compile(grammar, self.end_tokens(options))

    def replay(self, prompt: Prompt, answer_ids: Sequence[int]) -> ReplaySession:
        """Open a session that is fed the given answer; PromptError if it is empty or does not fit the context."""
        if not answer_ids:
            raise PromptError("the answer to replay is empty; only its depth 0 could be checked")
        self.budget(len(prompt.ids), 1, len(answer_ids))
        return ReplaySession(self, [prompt], [answer_ids])

    def resume(self, prompt: Prompt, answer_ids: Sequence[int]) -> ReplaySession:
        """As `replay`, on a fork of the kept text that agrees with prompt and answer longest, if one agrees at all."""
        text = (*prompt.ids, *answer_ids)
        with self.lock:  # no answer under way goes on while it is looked at
            found = None if self.reads_base_weights else self.kept.longest(text, len(text), ())
        length, same = len(text) + len(self.header.ids), self.inputs.same_factors
        if (
            found is None
            or not answer_ids
            or self.inputs.starts_anew(found[1], length)
            or not same(len(found[0].ids), len(prompt.ids), length)  # at every depth that may be checked
        ):
            return self.replay(prompt, answer_ids)
        self.budget(len(prompt.ids), 1, len(answer_ids))
        return ResumedSession(self, prompt, answer_ids, *found)

    def replay_batch(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], stopped: Sequence[bool], *, eos: int
    ) -> ReplaySession:
        """Open a session that is fed several answers; `stopped` ones end their turn with their last token or `eos`.

        Raises:
            PromptError: An answer is empty, or does not fit the context with its prompt.
        """
        if not all(answers):
            raise PromptError("an answer to replay is empty; leave it out")
        length, longest = max(len(prompt.ids) for prompt in prompts), max(map(len, answers))
        self.budget(length, 1, longest)
        self._allow_batch(prompts, length + longest)
        return ReplaySession(self, prompts, answers, stopped, eos=eos)

    def _allow_batch(self, prompts: Sequence[Prompt], length: int) -> None:
        """Refuse rows of different lengths where the longest decides on the position factors of all."""
        mixed = len({len(prompt.ids) for prompt in prompts}) > 1
        if mixed and self.inputs.starts_anew(1, length + len(self.header.ids) + len(self.header.answer_ids)):
            raise UnsupportedModel(
                f"{self.identity.name} cannot answer prompts of different lengths in one batch beyond "
                f"{self.inputs.switches_at} tokens, since position factors change there for all rows at once; give "
                "one prompt at a time, or a smaller max_new_tokens"
            )

    def unguarded(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, seed: int | None = None, **options: Any
    ) -> list[tuple[int, ...]]:
        """Tokens of one plain `model.generate` call per prompt, without a guard: guarded answers are compared to it."""
        answers, grammar = [], self._grammar_of(prompts, options)
        for prompt in prompts:
            ids = torch.tensor([prompt.ids], device=self.model.device)
            given = constrained(options, grammar, rows=1, begin=len(prompt.ids))
            with self.lock, seeded(seed, self.model.device), torch.no_grad():
                out = self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=max_new_tokens,
                    tokenizer=self.tokenizer,
                    **{"pad_token_id": self.pad_id, **given},
                )
            answers.append(tuple(out[0, ids.shape[1] :].tolist()))
        return answers

    def read_batch(
        self,
        answers: Sequence[FinishedAnswer],
        sites: Sequence[Site],
        *,
        tokens: Sequence[int],
        suffix: Sequence[int] | None = None,
        embeddings: np.ndarray | None = None,
    ) -> Sequence[Mapping[Site, np.ndarray]]:
        """States at all depths of several answers in one packed pass; see `Backend.read_batch`."""
        options = {"tokens": tokens, "suffix": suffix, "embeddings": embeddings}
        with self.lock, self.reading_weights():
            return packed.read_batch(self, answers, tuple(sites), **options)

    def cached_texts(self, answers: Sequence[FinishedAnswer], site: Site) -> CachedTexts:
        """Several finished answers, run once up to `site`, for Safety Tokens behind their depths; see `CachedTexts`."""
        return CachedTexts(self, answers, site)

    def describe(self) -> dict[str, Any]:
        """Facts for `anydepth inspect`: blocks, default site, how cache layers are forked, what packs, what rides.

        What does not work has its reason beside it, under `site_reason`, `cache_reason`, `packed_reason` and
        `ride_reason`. `ride` is the option as it was given, `rides` whether checks do.
        """
        facts: dict[str, Any] = {
            "layers": self.identity.num_layers,
            "readable_layers": 0,
            "hidden_size": self.identity.hidden_size,
            "context_length": self.context_length,
            "default_site": None,
            "site_reason": None,
            "cache": [],
            "cache_reason": None,
            "ride": self.ride,
            "rides": False,
            "ride_reason": None,
        }
        try:
            facts |= {"default_site": str(default_site(self.model)), "layers": len(find_blocks(self.model))}
            facts["readable_layers"] = readable_blocks(self.model)
        except UnsupportedModel as error:
            facts["site_reason"] = str(error)
        try:
            kinds = fork_kinds(self.new_cache(32, {}))
            facts["cache"] = [{"layer": layer, "fork": kind, "count": count} for layer, kind, count in kinds]
            facts |= {"rides": self.rides({}), "ride_reason": self.ride_refusal({})}
        except (UnsupportedCache, ConfigError) as error:
            facts["cache_reason"] = str(error)
        reason = packed.refusal(self)
        return facts | {"packed": reason is None, "packed_reason": reason}
