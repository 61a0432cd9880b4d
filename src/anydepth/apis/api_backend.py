"""Guard a model behind an API: the answer is a stream, and a check is one more request."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

from anydepth.apis.answer_handle import AnswerHandle
from anydepth.apis.api_session import ApiSession, StreamedRow, refusal_of_provider, replayed
from anydepth.apis.client_kinds import provider_of
from anydepth.apis.provider import ApiReply, ApiRequest, ChatTurn, Streamed, TokenTexts, require_free
from anydepth.apis.raw_prompts import RawPrompts
from anydepth.apis.self_test import (
    CUT,
    TRIAL_TOKENS,
    Shape,
    conversation,
    find_shape,
    require_tokens,
    try_named,
)
from anydepth.apis.spending import Purpose, Spending
from anydepth.apis.text_pieces import PLAIN, ConversationTemplate, Piece, text_of, turns_of
from anydepth.apis.token_texts import NO_LOGPROBS, PLACES, TOP, first_visible
from anydepth.apis.without_states import WithoutStates
from anydepth.backends.conversed import WrittenText
from anydepth.backends.protocol import Capability, ModelIdentity, Read
from anydepth.errors import CapabilityError, CheckError, ConfigError, PromptError
from anydepth.prices import Prices
from anydepth.provider_errors import RequestRejected
from anydepth.templates.prompt import Prompt
from anydepth.templates.template import ChatTemplate, Header

_CAN = frozenset({Capability.LOOK_AHEAD, Capability.CONVERSATION})
_CAPABILITIES = ("auto", "closes", "between", "raw")


class ApiBackend(WithoutStates):
    """Implements `anydepth.backends.protocol.Backend` over the client of an API, for a `Rethink` that looks ahead.

    `Guard.from_backend(ApiBackend(client, "name"), Rethink())` streams the answer. At each check it asks the same model
    for a fresh assistant turn behind the answer so far, of a few tokens. A refusal there halts the answer.

    The unit of depths, windows and schedules is one streamed piece of text. It has at least one of the provider's
    tokens, often several. Nothing but text is guarded: there are no tools, no images and no thoughts, and the thoughts
    of a model never leave.

    Capability:
        closes: An assistant message at the end is closed, and a new turn begins.
        between: A user message, `between`, follows the answer so far. This is another stimulus than Safety Tokens.
        raw: The prompt is rendered here with `template`, Safety Tokens included, and sent as token ids to a completions
            endpoint.
        auto: A trial before the first answer finds out whether `closes` or `between` fits. A provider that continues
            the message, or shows nothing, is refused.

    Args:
        client: An `openai.OpenAI` or `anthropic.Anthropic`, or a subclass or sibling for cloud hosts; not an async one.
        model: Name of the model.
        capability: `auto`, `closes`, `between` or `raw`.
        between: Text of the user message of `between`.
        template: The model's own chat template, for `raw` only.
        request: Further fields of every request, answers and checks alike, e.g. `{"reasoning_effort": "none"}`.
        greedy: Whether checks ask for temperature 0. By default they do in OpenAI's form and do not at Anthropic, whose
            client has no field for it: look-aheads are sampled there.
        limit_field: OpenAI's form only: the field that limits a reply, `max_tokens` or `max_completion_tokens`; by
            default the second for OpenAI's own host.
        stream_usage: OpenAI's form only: whether streams are asked for their usage.
        prices: What the provider charges, for the report.

    Attributes:
        capability: What is used; `auto` until the trial was made.

    Raises:
        ConfigError: An option has a value that it cannot have, or the client is not one of these.
        MissingExtra: The client's package is not installed.
    """

    batches_itself = False

    def __init__(
        self,
        client: Any,
        model: str,
        *,
        capability: str = "auto",
        between: str = "Continue.",
        template: ChatTemplate | None = None,
        request: Mapping[str, Any] | None = None,
        greedy: bool | None = None,
        limit_field: str | None = None,
        stream_usage: bool = True,
        prices: Prices | None = None,
    ) -> None:
        if capability not in _CAPABILITIES:
            raise ConfigError(f"capability is {capability!r}; choose one of {', '.join(_CAPABILITIES)}")
        if not isinstance(between, str) or not between.strip():
            raise ConfigError(f"between is {between!r}; give the text of a short user message")
        if (capability == "raw") != (template is not None):
            raise ConfigError("capability 'raw' and template go together; give both, or neither")
        self._request = dict(request or {})
        require_free(self._request)
        self._provider = provider_of(client, model, limit_field, stream_usage)
        if capability == "raw" and self._provider.name != "openai":
            raise ConfigError("capability 'raw' needs a completions endpoint, which Anthropic does not have")
        self.capability, self._between = capability, between
        self._raw = None if template is None else RawPrompts(template)
        self._greedy = {"temperature": 0.0} if (self._provider.greedy if greedy is None else greedy) else {}
        self._spending = Spending(prices)
        self.capabilities = _CAN | ({Capability.TOKEN_TEXTS} if self._provider.tells_tokens else set())
        self._model, self._tried, self._handle = model, set[Capability](), AnswerHandle()
        self.template = cast("ChatTemplate", ConversationTemplate())

    @property
    def identity(self) -> ModelIdentity:
        """Host and name of the model; its weights are not known."""
        where = f"{self._provider.name}:{self._provider.host}/{self._model}"
        return ModelIdentity(self._model, None, "api", 0, 0, fingerprint=where)

    @property
    def header(self) -> Header:
        """The Safety Tokens of `raw`; CapabilityError otherwise: the provider keeps its template for itself."""
        if self._raw is None:
            raise CapabilityError("the Safety Tokens of an API are not known; use Rethink(mode='look-ahead')")
        return self._raw.template.header

    @property
    def options(self) -> frozenset[str]:
        """Names of the options that an answer can have, `seed` included where the provider takes one."""
        return self._provider.options | ({"seed"} if self._provider.seed else set())

    def held_by(self, handle: AnswerHandle) -> "ApiBackend":
        """This backend for one answer, or one scan, that `handle` can end from another thread; accounts are shared."""
        held = copy.copy(self)
        held._handle = handle
        return held

    def report(self) -> dict[str, Any]:
        """What was asked so far, and how: JSON-ready.

        It has `provider`, `host`, `model`, `capability`, `between` (null unless that is used), `greedy` (whether checks
        ask for temperature 0) and `unit`. `answers`, `checks` and `trials` have each the requests, those of which the
        provider told no usage (tokens and cost are lower bounds then), the provider's tokens, and the cost (null
        without prices).
        """
        used = self.capability == "between"
        return {
            "provider": self._provider.name,
            "host": self._provider.host,
            "model": self._model,
            "capability": self.capability,
            "between": self._between if used else None,
            "greedy": bool(self._greedy),
            "unit": "streamed piece",
            **self._spending.record(),
        }

    # -- checks --------------------------------------------------------------------------------------------------------

    def prove(self, needs: frozenset[Capability], reads: Sequence[Read]) -> None:
        """Make a trial check, once, if the detector asks for fresh turns; find the capability if it is `auto`.

        Raises:
            CapabilityError: No fresh turn can be asked for, or it comes without the log-probabilities that the detector
                needs; the message has the reason and the remedy.
            ProviderError: A request failed.
        """
        wanted = needs & {Capability.LOOK_AHEAD, Capability.TOKEN_TEXTS}
        try:
            if wanted and not self._tried:
                if self.capability == "auto":
                    self.capability = find_shape(self._trial, self._prompt_tokens, self._provider.closes)
                else:
                    try_named(cast("Shape", self.capability), self._trial)
                self._tried.add(Capability.LOOK_AHEAD)
            if Capability.TOKEN_TEXTS in wanted - self._tried:
                require_tokens(lambda: self.first_tokens(conversation(), CUT, "trials"))
        except CheckError as error:
            raise CapabilityError(f"the trial check failed: {error}") from error
        self._tried |= wanted

    def _trial(self, shape: Shape) -> str:
        return self._fresh_turn(shape, conversation(), CUT, TRIAL_TOKENS, "trials")

    def _prompt_tokens(self, turns: tuple[ChatTurn, ...]) -> int | None:
        """How many prompt tokens a conversation has by the provider's usage; None if it is not told."""
        try:
            count = self._reply("closes", turns, "", 1, "trials", None).count
        except RequestRejected:  # e.g. a limit of one token
            return None
        return None if count is None else count.prompt

    def fresh_turn(
        self,
        history: tuple[ChatTurn, ...],
        partial: str,
        max_tokens: int,
        purpose: Purpose,
        *,
        spending: Spending | None = None,
    ) -> str:
        """The text of a fresh assistant turn.

        Args:
            history: The conversation.
            partial: The answer so far; where it is blank, the fresh turn answers the conversation itself.
            max_tokens: The provider's tokens at most.
            purpose: Which account it goes to.
            spending: Accounts of one answer, as a part of the backend's.

        Raises:
            ProviderError: The request failed.
            CheckError: The reply has no text although its tokens are spent, or the capability is not known yet.
        """
        return self._fresh_turn(self._shape(), history, partial, max_tokens, purpose, spending)

    def first_tokens(
        self, history: tuple[ChatTurn, ...], partial: str, purpose: Purpose, *, spending: Spending | None = None
    ) -> TokenTexts:
        """The most probable first tokens of a fresh assistant turn; see `fresh_turn`, whose errors it raises.

        CheckError as well if the reply comes without log-probabilities.
        """
        reply = self._reply(self._shape(), history, partial, PLACES, purpose, spending, TOP)
        if reply.ended.reason == "refused":
            return {refusal_of_provider(reply.ended.word): 0.0}
        if reply.tokens is None:
            raise CheckError(NO_LOGPROBS)
        reply.require_words(PLACES)
        return first_visible(reply.tokens)

    def _shape(self) -> Shape:
        if self.capability == "auto":
            raise CheckError("the capability is not known yet; call prove() before the first check")
        return cast("Shape", self.capability)

    def _fresh_turn(
        self,
        shape: Shape,
        history: tuple[ChatTurn, ...],
        partial: str,
        max_tokens: int,
        purpose: Purpose,
        spending: Spending | None = None,
    ) -> str:
        reply = self._reply(shape, history, partial, max_tokens, purpose, spending)
        if reply.ended.reason == "refused":
            return refusal_of_provider(reply.ended.word)
        reply.require_words(max_tokens)
        return reply.text if reply.count is None else WrittenText(reply.text, reply.count.completion)

    def _reply(
        self,
        shape: Shape,
        history: tuple[ChatTurn, ...],
        partial: str,
        max_tokens: int,
        purpose: Purpose,
        spending: Spending | None,
        top_logprobs: int = 0,
    ) -> ApiReply:
        self._handle.require_wanted()
        if self._raw is not None:
            ids, turns = self._raw.of_check(history, partial), ()
        else:
            ids, turns = None, history
            if partial.strip():
                turns += (ChatTurn("assistant", partial),)
                turns += (ChatTurn("user", self._between),) if shape == "between" else ()
        spending = spending or self._spending
        spending.begin(purpose)
        options = {**self._request, **self._greedy}
        reply = self._provider.reply(ApiRequest(turns, max_tokens, ids, options, top_logprobs=top_logprobs))
        spending.told(purpose, reply.count)
        return reply

    # -- answers -------------------------------------------------------------------------------------------------------

    def open(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, seed: int | None = None, **options: Any
    ) -> ApiSession:
        """Start answers.

        Args:
            prompts: At least one, made by `template`.
            max_new_tokens: Pieces, and tokens of the provider, per answer at most.
            seed: Seed of the sampling, where the provider takes one.
            **options: `temperature`, `top_p` and the like, by the provider's names for them.

        Raises:
            PromptError: There is no prompt, one does not fit the provider, or has a prefill that only `raw` continues.
            ConfigError: An option cannot be passed on.
        """
        if not prompts:
            raise PromptError("there is no prompt to answer; give at least one")
        rows = [self._row(prompt, max_new_tokens, seed, options) for prompt in prompts]
        return ApiSession(self, rows, self._handle)

    def _row(self, prompt: Prompt, limit: int, seed: int | None, options: Mapping[str, Any]) -> StreamedRow:
        if prompt.prefill and self._raw is None:
            raise PromptError("a prefill cannot be continued over this API; leave it out, or use capability 'raw'")
        allowed = self._provider.options
        if unknown := sorted(set(options) - allowed):
            raise ConfigError(f"{', '.join(unknown)} cannot be passed on; what can is {', '.join(sorted(allowed))}")
        if seed is not None and self._provider.seed is None:
            raise ConfigError(f"seed is {seed}, which {self._provider.name} does not take; leave it out")
        turns, begun = turns_of(prompt), text_of(prompt.ids[prompt.start :])
        if self._raw is None and any(turn.role == PLAIN for turn in turns):
            raise PromptError("a plain text cannot be continued over this API; send messages, or use capability 'raw'")
        self._provider.require_turns(turns)
        seeded = {} if seed is None or self._provider.seed is None else {self._provider.seed: seed}
        ids = None if self._raw is None else self._raw.of_answer(turns, begun)
        ask = ApiRequest(() if ids else turns, limit, ids, {**self._request, **seeded, **options}, handle=self._handle)
        spending = self._spending.of_an_answer()
        return StreamedRow(turns, self._stream(ask, spending), limit, spending, text=begun, depth=prompt.prefill)

    def _stream(self, ask: ApiRequest, spending: Spending) -> Streamed:
        self._handle.require_wanted()
        spending.begin("answers")
        yield from self._provider.stream(ask)

    def replay(self, prompt: Prompt, answer_ids: Sequence[int]) -> ApiSession:
        """A session that gives pieces that are there already: for scans; PromptError if there are none."""
        if not answer_ids:
            raise PromptError("the answer to replay is empty; give its text")
        text_of(answer_ids)  # refuses bare numbers
        pieces = [piece for piece in answer_ids if isinstance(piece, Piece)]
        row = StreamedRow(turns_of(prompt), replayed(pieces), len(pieces), self._spending.of_an_answer())
        return ApiSession(self, [row], self._handle)

    def unguarded(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, seed: int | None = None, **options: Any
    ) -> list[tuple[int, ...]]:
        """Pieces of the bare streams, without a check."""
        session = self.open(prompts, max_new_tokens=max_new_tokens, seed=seed, **options)
        try:
            return [decoded.token_ids for decoded in session.decode(max_new_tokens)]
        finally:
            session.close()

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """The text of pieces; ConfigError for bare numbers."""
        return text_of(token_ids)
