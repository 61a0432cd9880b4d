"""A model that an SGLang server runs, ready to be guarded."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, GenerationConfig

from anydepth.backends.checkpoint_identity import checkpoint_folder, identify
from anydepth.backends.protocol import Capability, FinishedAnswer, ModelIdentity, Read, Site, sites_of
from anydepth.backends.sglang.served_facts import ask_facts, require_model
from anydepth.backends.sglang.served_states import WHO, Place, ServedStates, layer_of, tokens_of
from anydepth.backends.sglang.sglang_client import SglangClient
from anydepth.backends.sglang.sglang_sampling import sampling_params
from anydepth.backends.sglang.sglang_session import SglangSession, session_of
from anydepth.backends.sglang.token_stream import GivenTokens, TokenStream
from anydepth.backends.transformers.opening import auto_class, open_tokenizer, opening
from anydepth.errors import AnydepthError, CheckError, ConfigError, ModelError, PromptError, UnsupportedModel
from anydepth.templates.template import ChatTemplate, Header, Prompt

_TEXTS = 32
"""Texts that are read in one request at most."""

_TRIAL_TOKENS = 3
_TOLERANCE = 0.5  # two readings differ by rounding, as batches do; states of other texts differ by far more


class SglangBackend:
    """A model behind SGLang's HTTP interface; implements `anydepth.backends.protocol.Backend`.

    The server writes the answers and gives the outputs of the blocks that it was started for; the checkpoint's files on
    this machine give the tokenizer, the chat template, the identity and the weights of the norms that a probe reads.
    A check reads header tokens and the one before them, each in a text of its own, at one or several sites. Several
    threads may use a backend at once.

    Args:
        url: Where the server listens, e.g. `http://127.0.0.1:30000`.
        model: Folder, or hub id of a model in the local cache: the checkpoint that the server runs.
        served_path: What the server was started with as its model, where that is not `model`.
        api_key: The server's `--api-key`, if it has one.
        revision: Commit, tag or branch of a hub model.
        template_kwargs: Variables for the chat template.
        timeout: Seconds to wait for the server's next bytes.

    Attributes:
        template: The chat template.
        tokenizer: The tokenizer.
        facts: What the server says of itself.

    Raises:
        ConfigError: The URL is not one of http or https.
        ModelError: The server does not answer or runs another model, or the checkpoint cannot be read.
        UnsupportedModel: The server was not started to return states.
        TemplateError: There is no chat template.
    """

    capabilities = frozenset({Capability.HIDDEN_STATES})
    batches_itself = True

    def __init__(
        self,
        url: str,
        model: str | Path,
        *,
        served_path: str | None = None,
        api_key: str | None = None,
        revision: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        timeout: float = 120.0,
    ) -> None:
        self._client = SglangClient(url, api_key=api_key, timeout=timeout)
        self.facts = ask_facts(self._client)
        self._folder = checkpoint_folder(str(model), revision)
        with opening("model", model, revision):
            self._config: Any = AutoConfig.from_pretrained(model, revision=revision)
            self._identity = identify(str(model), self._config, revision)
        require_model(self.facts, url, self._identity, self._config.model_type, served_path or str(model))
        self.tokenizer: Any = open_tokenizer(model, revision=revision)
        self.template = ChatTemplate(self.tokenizer, name=str(model), template_kwargs=template_kwargs)
        auto = auto_class(model, revision=revision)
        with opening("model", model, revision), torch.device("meta"):
            skeleton = auto.from_config(self._config)
        self._states = ServedStates(skeleton, self._folder, self._identity.hidden_size)

    @property
    def identity(self) -> ModelIdentity:
        """Which model this is, from the checkpoint's files."""
        return self._identity

    @property
    def header(self) -> Header:
        """The Safety Tokens of the chat template."""
        return self.template.header

    @property
    def context_length(self) -> int | None:
        """Longest text that the server reads, in tokens; None if it does not say."""
        return self.facts.context

    def check_site(self, site: Site) -> None:
        """Raise UnsupportedModel if the states of `site` cannot be made of outputs of blocks."""
        self._states.check_site(site)

    def prove(self, needs: frozenset[Capability], reads: Sequence[Read]) -> None:
        """Write a token and make two checks of a short text.

        Raises:
            CapabilityError: One of the reads is a mean.
            UnsupportedModel: The server was not started for their layers, or a check fails.
        """
        if not reads:
            return
        tokens_of(reads)
        self._require_layers(sites_of(reads))
        prompt = self.template.prompt("Hello")
        answer = prompt.ids[:_TRIAL_TOKENS]
        depths = (0, len(answer), len(answer))
        try:
            with closing(
                self._stream(prompt, {**sampling_params({}, {}, self._end_tokens), "max_new_tokens": 1})
            ) as one:
                one.take(1)
            start, first, again = (self.read_at([(prompt, answer, depth)], reads)[0] for depth in depths)
        except (CheckError, ModelError) as error:
            raise UnsupportedModel(f"checks do not work on the server at {self._client.url}: {error}") from error
        if (off := _difference(first, again)) > _TOLERANCE:
            raise UnsupportedModel(f"two readings of one text differ by {off:.0%} on the server at {self._client.url}")
        if np.array_equal(start, first):
            raise UnsupportedModel(f"the server at {self._client.url} gives one state for two texts")

    # -- answers -------------------------------------------------------------------------------------------------------

    def open(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, seed: int | None = None, **options: Any
    ) -> SglangSession:
        """Start answers to `prompts`; nothing is sent before the first token is decoded.

        Args:
            prompts: At least one.
            max_new_tokens: Tokens per answer at most.
            seed: Seed of the sampling; row n is sampled with `seed + n`.
            **options: Of `sglang_sampling.TAKEN`, by their names in Transformers' `generate`.

        Raises:
            PromptError: There is no prompt, or one does not fit the server's context.
            ConfigError: An option is not taken, or a seed is given that the server would not heed.
        """
        if not prompts:
            raise PromptError("there is no prompt to answer; give at least one")
        sources = []
        for row, prompt in enumerate(prompts):
            sampling = self._sampling(options, self._budget(prompt, max_new_tokens), seed, row)
            sources.append(self._stream(prompt, sampling))
        return session_of(self, prompts, sources)

    def replay(self, prompt: Prompt, answer_ids: Sequence[int]) -> SglangSession:
        """Open a session that is given the answer; PromptError if it is empty or does not fit the context."""
        if not answer_ids:
            raise PromptError("the answer to replay is empty; only its depth 0 could be checked")
        self._budget(prompt, 1, needed=len(answer_ids))
        return session_of(self, [prompt], [GivenTokens(answer_ids)])

    def unguarded(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, seed: int | None = None, **options: Any
    ) -> list[tuple[int, ...]]:
        """Tokens that the server writes, one request a prompt, nothing checked."""
        answers = []
        for row, prompt in enumerate(prompts):
            body = {
                "input_ids": list(prompt.ids),
                "sampling_params": self._sampling(options, max_new_tokens, seed, row),
            }
            answers.append(tuple(self._client.post("/generate", body)["output_ids"]))
        return answers

    def _sampling(
        self, options: Mapping[str, Any], length: int, seed: int | None = None, row: int = 0
    ) -> dict[str, Any]:
        found = sampling_params(vars(self._generation_config), options, self._end_tokens)
        if seed is not None and found["temperature"]:
            if not self.facts.deterministic:
                raise ConfigError(
                    f"seed is {seed}, and the SGLang server at {self._client.url} does not heed it; start it with "
                    "--enable-deterministic-inference, or give no seed"
                )
            found["sampling_seed"] = (seed + row) % 2**63
        return {**found, "max_new_tokens": length}

    def _budget(self, prompt: Prompt, wanted: int, needed: int = 1) -> int:
        """How many of `wanted` tokens fit behind the prompt with a check; PromptError if not even `needed` do."""
        if self.context_length is None:
            return wanted
        room = self.context_length - len(prompt.ids) - len(self.header.ids)
        if room < needed:
            raise PromptError(
                f"prompt and prefill have {len(prompt.ids)} tokens, and {needed} more with a check of "
                f"{len(self.header.ids)} do not fit the {self.context_length} that the server takes; shorten them"
            )
        return min(wanted, room)

    def _stream(self, prompt: Prompt, sampling: Mapping[str, Any]) -> TokenStream:
        return TokenStream(self._client, prompt.ids, sampling, incremental=self.facts.incremental)

    @cached_property
    def _generation_config(self) -> GenerationConfig:
        if self._folder is not None and (self._folder / "generation_config.json").is_file():
            return GenerationConfig.from_pretrained(self._folder)
        return GenerationConfig.from_model_config(self._config)

    @cached_property
    def _end_tokens(self) -> frozenset[int]:
        given = self._generation_config.eos_token_id
        listed = given if isinstance(given, list) else [given]
        return frozenset(int(each) for each in [*listed, self.tokenizer.eos_token_id] if each is not None)

    # -- states --------------------------------------------------------------------------------------------------------

    def read_at(
        self, places: Sequence[Place], reads: Sequence[Read], suffix: Sequence[int] | None = None
    ) -> np.ndarray:
        """All `reads` at each place, float32 `[len(places), len(reads), hidden_size]`; one text for each token read.

        Raises:
            CapabilityError: One of the reads is a mean.
            PromptError: A depth is outside its answer, or does not fit the server's context.
            CheckError: The server fails, counts other tokens than were sent, or gives no state that can be the model's.
        """
        tokens, sites = tokens_of(reads), sites_of(reads)
        texts = [self._text_at(place, token, suffix) for place in places for token in tokens]
        shape = (len(places), len(tokens), len(sites), self.identity.hidden_size)
        found = self._read_texts(texts, sites).reshape(shape)
        columns = [(tokens.index(read.token), sites.index(read.site)) for read in reads]
        return np.stack([found[:, token, site] for token, site in columns], 1)

    def _text_at(self, place: Place, token: int, suffix: Sequence[int] | None) -> tuple[int, ...]:
        """The text whose last token is read: prompt, answer up to the depth, header up to `token` (`Read.token`).

        At depth 0 the header is the prompt's own, unless the prompt lacks the token. With a `suffix` in place of the
        header it is always appended.
        """
        prompt, answer, depth = place
        if not 0 <= depth <= len(answer):
            raise PromptError(f"depth {depth} is outside the answer, which has {len(answer)} tokens")
        own = self.template.position(prompt, token) if suffix is None and not depth else None
        ids = self.header.ids if suffix is None else suffix
        behind = (*prompt.ids[: prompt.start], *answer[:depth], *ids[: token + 1])
        text = behind if own is None else prompt.ids[: own + 1]
        if self.context_length is not None and len(text) > self.context_length:
            raise PromptError(
                f"a check at depth {depth} has {len(text)} tokens, and {WHO} reads {self.context_length}: shorten "
                "them, or start the server with a longer --context-length"
            )
        return text

    def _read_texts(self, texts: Sequence[Sequence[int]], sites: Sequence[Site]) -> np.ndarray:
        """The states of the last token of each text, float32 `[len(texts), len(sites), hidden_size]`."""
        self._require_layers(sites)
        parts = [texts[begin : begin + _TEXTS] for begin in range(0, len(texts), _TEXTS)]
        found = [
            self._states.states(values, self.facts.layers, sites)
            for part in parts
            for values in self._last_states(part)
        ]
        return np.stack(found) if found else np.zeros((0, len(sites), self.identity.hidden_size), np.float32)

    def _last_states(self, texts: Sequence[Sequence[int]]) -> list[Any]:
        """What the server returns for the last token of each text.

        The endpoint is `/v1/completions`: `/generate` of SGLang 0.5.23 refuses "last". One token is asked for, since
        the state of a second one would take the place of the text's.
        """
        body = {
            "prompt": [list(text) for text in texts],
            "max_tokens": 1,
            "temperature": 0.0,
            "return_hidden_states": "last",
        }
        try:
            reply = self._client.post("/v1/completions", body)
            choices = sorted(reply["choices"], key=lambda choice: choice["index"])
            counted = reply["usage"]["prompt_tokens"]
        except (ModelError, LookupError, TypeError) as error:
            kind = "" if isinstance(error, AnydepthError) else "its answer to a check is not understood: "
            raise CheckError(f"{kind}{error}") from error
        if [choice["index"] for choice in choices] != list(range(len(texts))):
            raise CheckError(f"the server gave {len(choices)} states for {len(texts)} texts")
        if counted != (sent := sum(map(len, texts))):
            raise CheckError(f"the server counts {counted} tokens in texts of {sent}; it did not read what was sent")
        if any(choice.get("hidden_states") is None for choice in choices):
            raise CheckError("the server returned no hidden state")
        return [choice["hidden_states"] for choice in choices]

    def _require_layers(self, sites: Sequence[Site]) -> None:
        """UnsupportedModel unless the server returns the outputs of the blocks that `sites` are made of."""
        for site in sites:
            self.check_site(site)
        wanted = sorted({layer_of(site) for site in sites})
        if not set(wanted) <= set(self.facts.layers):
            raise UnsupportedModel(
                f"the SGLang server at {self._client.url} returns the outputs of the blocks {list(self.facts.layers)}, "
                f"and {', '.join(map(str, sites))} need {wanted}; start it with "
                f"--return-aux-hidden-state-layer-ids {' '.join(map(str, wanted))}"
            )

    def read_batch(
        self,
        answers: Sequence[FinishedAnswer],
        sites: Sequence[Site],
        *,
        tokens: Sequence[int],
        suffix: Sequence[int] | None = None,
    ) -> Sequence[Mapping[Site, np.ndarray]]:
        """Hidden states at all depths of several finished answers, one text a depth; see `Reader.read_batch`.

        Raises:
            CapabilityError: One of `tokens` is a mean.
            PromptError: A depth is outside its answer, or does not fit the server's context.
            CheckError: The server gives no state.
        """
        reads = [Read(site, token) for site in sites for token in tokens]
        places = [(answer.prompt, answer.answer_ids, depth) for answer in answers for depth in answer.depths]
        found = self.read_at(places, reads, suffix).reshape(len(places), len(sites), len(tokens), -1)
        ends = np.cumsum([len(answer.depths) for answer in answers])[:-1]
        return [{site: rows[:, place] for place, site in enumerate(sites)} for rows in np.split(found, ends)]

    def first_token_ids(self, texts: Sequence[str]) -> list[int]:
        """The first token of each text as the start of an answer."""
        return [self.tokenizer.encode(text, add_special_tokens=False)[0] for text in texts]

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`, special tokens left out."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def close(self) -> None:
        """Close the connections to the server."""
        self._client.close()


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Length of the difference over the length of `other`, the largest of all reads."""
    each = np.linalg.norm(one - other, axis=-1) / np.maximum(np.linalg.norm(other, axis=-1), 1e-12)
    return float(each.max())
