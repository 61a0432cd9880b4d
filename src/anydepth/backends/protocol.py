"""What an engine must offer so that its answers can be guarded."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, cast

from anydepth.backends.conversed import Conversed
from anydepth.errors import CapabilityError, ConfigError, UnsupportedModel
from anydepth.templates.header import CONTENT as CONTENT
from anydepth.templates.header import WHOLE as WHOLE
from anydepth.templates.header import check_token, is_mean, parse_token, token_text
from anydepth.types import Decoded

if TYPE_CHECKING:
    import numpy as np

    from anydepth.templates.template import ChatTemplate, Header, Prompt


class Capability(StrEnum):
    """Something that a detector may need of a backend."""

    HIDDEN_STATES = "hidden states"
    LOOK_AHEAD = "look-ahead"
    NEXT_TOKEN = "next-token probabilities"
    EMBEDDINGS = "trained Safety Tokens"
    CONVERSATION = "the conversation as text"
    TOKEN_TEXTS = "probabilities of next tokens by their texts"


@dataclass(frozen=True, slots=True)
class Site:
    """Where a hidden state is read: the output of one module of one block.

    Attributes:
        block: Index of the transformer block, from 0. Reading `input_layernorm` of block L runs blocks 0 to L-1 only.
        module: Name of a direct child of the block, or `output` for the block's own output (the residual stream).
    """

    block: int
    module: str = "input_layernorm"

    def __str__(self) -> str:
        return f"{self.block}.{self.module}"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read `"15.input_layernorm"`, the form `str(site)` writes; ConfigError if it is not of that form."""
        block, _, module = text.partition(".")
        if not block.isdecimal() or not module:
            raise ConfigError(f"site is {text!r}; write it as BLOCK.MODULE, e.g. 15.input_layernorm")
        return cls(int(block), module)

    def within(self, block: Any) -> Any:
        """The module of this site in its block, a `torch.nn.Module`; UnsupportedModel names what there is instead."""
        if self.module == "output":
            return block
        children = dict(block.named_children())
        if self.module not in children:
            raise UnsupportedModel(
                f"site {self} does not exist: block {self.block} ({type(block).__name__}) has "
                f"{', '.join(children)} and output"
            )
        return children[self.module]


@dataclass(frozen=True, slots=True)
class Read:
    """One hidden state that a probe reads at a check, or the mean of several.

    A mean is taken over the states, at the site, of answer tokens before the check: a client's prefill counts as
    answer, the prompt and an end of turn do not. It depends on the text and the depth alone, is summed in float32, and
    is the zero vector at depth 0.

    Attributes:
        site: The module whose output is read.
        token: What is read: an index in the header, `CONTENT`, or a mean: `-n` with n >= 2 for the answer's last n
            tokens, `WHOLE` for all. Tokens that a short answer lacks count as zero: it is little evidence.
    """

    site: Site
    token: int

    def __post_init__(self) -> None:
        check_token(self.token)

    def __str__(self) -> str:
        return f"{self.site}@{token_text(self.token)}"

    @property
    def is_mean(self) -> bool:
        """Whether this is a mean over answer tokens; else it is the state of one token."""
        return is_mean(self.token)

    @classmethod
    def parse(cls, text: str) -> "Read":
        """Read what `str(read)` writes, else ConfigError.

        The forms are `15.input_layernorm@3`, `...@content`, `...@mean25` and, for the whole answer, `...@mean`.
        """
        site, _, token = text.partition("@")
        try:
            return cls(Site.parse(site), parse_token(token))
        except ConfigError as error:
            raise ConfigError(f"read is {text!r}; write it as SITE@TOKEN, e.g. 15.input_layernorm@3: {error}") from None


def sites_of(reads: Iterable[Read]) -> tuple[Site, ...]:
    """The sites of these reads, each once, in their order."""
    return tuple(dict.fromkeys(read.site for read in reads))


def last_header_token(reads: Iterable[Read]) -> int:
    """The index of the last header token among `reads`: no later one has to be run; `CONTENT` if there is none."""
    return max((read.token for read in reads if not read.is_mean), default=CONTENT)


def require_no_means(reads: Iterable[Read], who: str) -> None:
    """CapabilityError if one of `reads` is a mean: `who` reads the states of single tokens only."""
    if means := [str(read) for read in reads if read.is_mean]:
        raise CapabilityError(
            f"{who} reads the states of single tokens; the probe reads {', '.join(means)}, a mean over answer tokens: "
            "give a probe that reads the header or @content"
        )


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model this is, so that a probe can refuse another one.

    Attributes:
        name: Hub id or path, for people.
        revision: Commit of the hub repository, if known.
        model_type: Architecture name of the configuration.
        hidden_size: Width of the residual stream.
        num_layers: Number of blocks.
        fingerprint: Digest of weights that fine-tuning in full changes and adapters, bf16 or float32 loading do not
            (the final norm); the same for every copy of one checkpoint.
    """

    name: str
    revision: str | None
    model_type: str
    hidden_size: int
    num_layers: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class CheckPoint:
    """One check to make: a row of the session and the depth to read it at (0, or the row's current depth)."""

    row: int
    depth: int


@dataclass(frozen=True, slots=True)
class FinishedAnswer:
    """An answer that is read at all its depths at once.

    Attributes:
        prompt: The question; a prefill is left out of account.
        answer_ids: Tokens of the answer.
        depths: Where to read, each from 0 to `len(answer_ids)`.
        resumes: Whether to go on from what the engine still has of a text that begins alike (other last digits).
    """

    prompt: "Prompt"
    answer_ids: tuple[int, ...]
    depths: tuple[int, ...]
    resumes: bool = False

    @property
    def deepest(self) -> int:
        """The largest of `depths`: no later token has to be run."""
        return max(self.depths, default=0)


class Session(Protocol):
    """A batch of answers under way. A row's depth is its prefill at first, and grows as it decodes."""

    @property
    def rows(self) -> int:
        """How many answers the session holds."""
        ...

    def decode(self, n: int) -> list[Decoded]:
        """Decode up to `n` more tokens per live row; one `Decoded` per row, empty for finished and dropped rows."""
        ...

    def drop(self, row: int) -> None:
        """Stop decoding `row`, which was halted; the other rows are not disturbed."""
        ...

    def hidden_states(self, points: Sequence[CheckPoint], reads: Sequence[Read]) -> "np.ndarray":
        """Make all `reads` for each point, in one forward pass: float32 `[len(points), len(reads), hidden_size]`.

        At depth 0 the header is the generation prompt itself; else it is appended to a fork of the cache. The answer is
        not disturbed: what is decoded afterwards is the same with and without the reading. A mean is that of the
        answer's last tokens up to the point's depth, at depth 0 the zero vector. The session keeps the states of a site
        from the first call with a mean there; what was decoded before is run once more.
        """
        ...

    def look_ahead(
        self, points: Sequence[CheckPoint], max_new_tokens: int, decided: Callable[[str], bool]
    ) -> list[str]:
        """Greedy text (at most `max_new_tokens`) that the model writes after the header, on a fork.

        Stops a row as soon as `decided(text)` is true. A `WrittenText` tells how many tokens its text took.
        """
        ...

    def next_token_logprobs(self, points: Sequence[CheckPoint]) -> "np.ndarray":
        """Log-probabilities of the token after the whole header: float32 `[len(points), vocab_size]`."""
        ...

    def conversations(self, points: Sequence[CheckPoint]) -> list[Conversed]:
        """The messages and the answer so far of each point, as text."""
        ...

    def close(self) -> None:
        """Free the cache."""
        ...


class TokenTextSession(Session, Protocol):
    """A session of a backend with `Capability.TOKEN_TEXTS`."""

    def next_token_texts(self, points: Sequence[CheckPoint]) -> Sequence[Mapping[str, float]]:
        """The most probable tokens after the whole header of each point: text -> log-probability."""
        ...


class Reader(Protocol):
    """A loaded model that reads finished answers: what scans need, and what states are collected with."""

    template: "ChatTemplate"
    capabilities: frozenset[Capability]
    batches_itself: bool
    """True if `read_batch` takes many answers of any length: the engine makes its own batches."""

    @property
    def identity(self) -> ModelIdentity:
        """The identity of the loaded model."""
        ...

    @property
    def header(self) -> "Header":
        """The Safety Tokens of this model's template."""
        ...

    def check_site(self, site: Site) -> None:
        """Raise UnsupportedModel if `site` does not exist in this model."""
        ...

    def prove(self, needs: frozenset[Capability], reads: Sequence[Read]) -> None:
        """Try, before the first answer, whether checks work on this model.

        A check that can never work would halt every answer as if each user had asked for harm. A backend for which
        that cannot happen has nothing to do.

        Args:
            needs: The capabilities that the detector needs.
            reads: The hidden states that it reads, if it declares them.

        Raises:
            UnsupportedModel: A trial failed, or a fork does not give the states of the text; the reason is named.
            TemplateError: The chat template alone fills the model's context.
            ConfigError: The model's generation config names a kind of cache that cannot be forked.
        """
        ...

    def read_batch(
        self,
        answers: Sequence[FinishedAnswer],
        sites: Sequence[Site],
        *,
        tokens: Sequence[int],
        suffix: Sequence[int] | None = None,
    ) -> Sequence[Mapping[Site, "np.ndarray"]]:
        """Hidden states at all depths of several finished answers, in one packed pass.

        Args:
            answers: The answers; of about the same length, since the shorter ones are padded.
            sites: Where to read; the pass ends at the highest.
            tokens: Which tokens, as `Read.token`: indices in the header, `CONTENT` for the token before it, and `-n` or
                `WHOLE` for the mean over the answer's last n tokens, or over all, up to each depth.
            suffix: Tokens to append instead of the header, for control experiments; means do not depend on it.

        Returns:
            Per answer and site one float32 array `[len(depths), len(tokens), hidden_size]`. At depth 0 the header is
            the generation prompt itself, unless `suffix` is given, and a mean is the zero vector.

        Raises:
            UnsupportedModel: The architecture cannot take the packed mask; use `replay` there.
            PromptError: A depth is outside its answer.
        """
        ...

    def first_token_ids(self, texts: Sequence[str]) -> list[int]:
        """The first token of each text as the start of an answer."""
        ...

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`, special tokens left out."""
        ...


class Backend(Reader, Protocol):
    """A loaded model that can open sessions."""

    def open(
        self, prompts: Sequence["Prompt"], *, max_new_tokens: int, seed: int | None = None, **options: Any
    ) -> Session:
        """Start answers to `prompts`, one row per prompt.

        Args:
            prompts: At least one.
            max_new_tokens: Tokens per answer at most.
            seed: Seed of the sampling; None uses the engine's global random state.
            **options: Sampling options of the engine.

        Raises:
            PromptError: There is no prompt, or one does not fit the model's context.
            ConfigError: A sampling option does not exist or cannot be guarded.
            UnsupportedModel: A sampling option needs something that this model cannot do.
        """
        ...

    def replay(self, prompt: "Prompt", answer_ids: Sequence[int]) -> Session:
        """Open a session that decodes the given answer; PromptError if it is empty or too long for the context."""
        ...

    def unguarded(
        self, prompts: Sequence["Prompt"], *, max_new_tokens: int, seed: int | None = None, **options: Any
    ) -> list[tuple[int, ...]]:
        """Tokens of the bare engine, no guard anywhere: what guarded answers are compared with."""
        ...


def require_sessions(reader: Reader) -> Backend:
    """Return `reader` as a backend that opens sessions; CapabilityError if it only reads finished answers."""
    if not hasattr(reader, "open"):
        raise CapabilityError(
            f"{type(reader).__name__} reads finished answers only; for guarded answers start vLLM with engine_options "
            "(docs/vllm.md), or load the model with Transformers"
        )
    return cast("Backend", reader)
