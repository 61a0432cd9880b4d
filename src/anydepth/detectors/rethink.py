"""Score a check by what the model says when its Safety Tokens make it rethink (paper, ADA-RK)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from anydepth.backends.conversed import WrittenText
from anydepth.backends.protocol import Capability, CheckPoint, Reader, Session, TokenTextSession
from anydepth.detectors.detector import require_capabilities, require_usable
from anydepth.detectors.refusals import RefusalMatcher, RefusalOpeners
from anydepth.errors import CheckError, ConfigError, ProbeMismatch
from anydepth.stages import Spent
from anydepth.types import Score

_NEEDS = {"look-ahead": Capability.LOOK_AHEAD, "score": Capability.NEXT_TOKEN}
_FIELDS = ("mode", "max_new_tokens", "opener_ids", "fingerprint")


class Rethink:
    """Reads how the model would begin its answer anew after the Safety Tokens; needs no training (paper, ADA-RK).

    `look-ahead` (the paper's): greedy text of a few tokens; the score is 1 if it refuses, 0 if it does not. It stops as
    soon as that is decided. A model that ends its turn at once has not refused: score 0, detail `(no text)`.

    `score`: one forward; the score is the probability that the answer begins with one of the refusal openers. Without
    calibration these are the clear openers of `refusals.toml`; see `calibrate` for a model's own.

    Args:
        mode: `look-ahead` or `score`.
        max_new_tokens: Length of the look-ahead at most (the paper: 20).
        matcher: What tells a refusal; the package's own by default.
        opener_ids: Token ids of calibrated openers, for the `score` mode.
        fingerprint: Fingerprint of the model that `opener_ids` were calibrated on; another one is refused. Token ids
            mean nothing to another tokenizer.

    Raises:
        ConfigError: An option has a value that it cannot have.
    """

    name = "rethink"

    def __init__(
        self,
        mode: str = "look-ahead",
        *,
        max_new_tokens: int = 20,
        matcher: RefusalMatcher | None = None,
        opener_ids: Sequence[int] | None = None,
        fingerprint: str | None = None,
    ) -> None:
        if mode not in _NEEDS:
            raise ConfigError(f"mode is {mode!r}; choose one of {', '.join(_NEEDS)}")
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens!r}; it must be a whole number, at least 1")
        if opener_ids is not None and not (
            len(opener_ids) and all(isinstance(i, int | np.integer) and i >= 0 for i in opener_ids)
        ):
            raise ConfigError(f"opener_ids is {opener_ids!r}; give at least one token id, or leave it out")
        self.mode = mode
        self.needs = frozenset({_NEEDS[mode]})
        self.max_new_tokens = max_new_tokens
        self.matcher = matcher or RefusalMatcher.default()
        self.opener_ids = None if opener_ids is None else tuple(sorted({int(token) for token in opener_ids}))
        self.fingerprint = fingerprint
        self._calibrated = opener_ids is not None
        self._candidates: tuple[int, ...] = ()
        self._bound_to: str | None = None
        self._by_text = False

    def bind(self, backend: Reader) -> None:
        """Check that the backend can do it and, in the `score` mode, look up the openers' token ids.

        A backend that does not know its model's tokens, but tells the texts of the most probable ones, is asked for
        these: an opener is then found by its text.

        Raises:
            CapabilityError: The backend offers neither look-ahead nor next-token probabilities, whichever is needed.
            ProbeMismatch: The openers were calibrated on another model.
            ConfigError: No opener can be told from a harmless beginning by its first token; calibrate. Or there are
                calibrated ones, which are token ids, and the backend tells texts.
        """
        by_text = backend.capabilities & {Capability.NEXT_TOKEN, Capability.TOKEN_TEXTS} == {Capability.TOKEN_TEXTS}
        self._by_text = self.mode == "score" and by_text
        self.needs = frozenset({Capability.TOKEN_TEXTS if self._by_text else _NEEDS[self.mode]})
        require_capabilities(self, backend)
        if self._by_text and self._calibrated:
            raise ConfigError(
                f"the openers were calibrated as token ids, which {type(backend).__name__} does not know; leave "
                "opener_ids out, or use Rethink(mode='look-ahead')"
            )
        if self.mode != "score" or self._by_text:
            return
        self._bound_to = backend.identity.fingerprint
        if self._calibrated:
            if self.fingerprint is not None and self.fingerprint != self._bound_to:
                raise ProbeMismatch(
                    f"the openers were calibrated on a model with the weights {self.fingerprint}, "
                    f"{backend.identity.name} has {self._bound_to}; calibrate again"
                )
            return
        clear, self._candidates = _first_tokens(self.matcher.openers, backend)
        if not clear:
            raise ConfigError(
                "no refusal opener begins with a token of its own in this tokenizer; calibrate the openers, "
                "or use Rethink(mode='look-ahead')"
            )
        self.opener_ids = clear

    def check(self, session: Session, points: Sequence[CheckPoint]) -> list[Score]:
        """Score each point; CheckError if the backend's reply is not usable."""
        if not points:
            return []
        if self._by_text:
            scores = [self._judged_token(texts) for texts in token_texts(session, points)]
        elif self.mode == "score":
            scores = self._by_probability(session, points)
        else:
            scores = [self._judged(text) for text in session.look_ahead(points, self.max_new_tokens, self.decided)]
        return require_usable(scores, points, self.name)

    def calibrate(self, refusal_logprobs: np.ndarray, compliance_logprobs: np.ndarray) -> "Rethink":
        """Return this detector with the openers that tell this model's refusals from its answers.

        Args:
            refusal_logprobs: Log-probabilities after the header of requests that the model refuses, float
                `[n, vocab_size]`.
            compliance_logprobs: Log-probabilities of requests that the model answers, float `[m, vocab_size]`.

        Raises:
            ConfigError: No opener is more probable in a refusal, or the detector is not bound to a model.
        """
        if self._bound_to is None:
            raise ConfigError("calibrate needs the model's tokens; call bind(backend) in mode 'score' first")
        candidates = self._candidates or self.opener_ids or ()
        seen = np.unique(np.argmax(refusal_logprobs, axis=1))  # what this model's own refusals begin with
        ids = calibrate_openers(refusal_logprobs, compliance_logprobs, sorted({*candidates, *seen.tolist()}))
        return Rethink(
            "score",
            max_new_tokens=self.max_new_tokens,
            matcher=self.matcher,
            opener_ids=ids,
            fingerprint=self._bound_to,
        )

    def record(self) -> dict[str, Any]:
        """The JSON-ready record that `from_record` reads back; the matcher is the package's and is not stored."""
        openers = list(self.opener_ids) if self._calibrated and self.opener_ids is not None else None
        values = (self.mode, self.max_new_tokens, openers, self.fingerprint)
        return {name: value for name, value in zip(_FIELDS, values, strict=True) if value is not None}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Rethink":
        """Build the detector from a record; ConfigError names what is unknown."""
        unknown = set(record) - set(_FIELDS)
        if unknown:
            raise ConfigError(f"a Rethink record has {sorted(unknown)}; it takes {', '.join(_FIELDS)}")
        return cls(**record)

    def judge_text(self, text: str) -> Score:
        """The score of a look-ahead: 1 if it refuses, 0 if not; the detail is the text."""
        return Score(float(self.matcher.is_refusal(text)), text.strip() or "(no text)")

    def _judged(self, text: str) -> Score:
        score = self.judge_text(text)
        return replace(score, spent=Spent(look_ahead_tokens=text.tokens)) if isinstance(text, WrittenText) else score

    def decided(self, text: str) -> bool:
        """True if no more text can change the score."""
        return self.matcher.decided(text) is not None

    def _judged_token(self, texts: Mapping[str, float]) -> Score:
        """The probability that a token begins a refusal, by its text; the detail is the likeliest token."""
        openers = self.matcher.openers
        counted = [text for text in texts if openers.begins_refusal(text) or self.matcher.is_refusal(text)]
        likeliest = max(texts, key=texts.__getitem__, default="")
        mass = float(np.exp([texts[text] for text in counted]).sum())
        return Score(1.0 if 1 < mass < 1 + 1e-3 else mass, repr(likeliest) if texts else "(no token)")

    def _by_probability(self, session: Session, points: Sequence[CheckPoint]) -> list[Score]:
        if self.opener_ids is None:
            raise CheckError("the openers are not known yet; call bind(backend) before the first check")
        logprobs = np.asarray(session.next_token_logprobs(points), dtype=np.float64)
        if logprobs.ndim != 2 or self.opener_ids[-1] >= logprobs.shape[1]:
            raise CheckError(f"opener {self.opener_ids[-1]} is outside of log-probabilities {logprobs.shape}")
        mass = np.exp(logprobs[:, list(self.opener_ids)]).sum(axis=1)
        # a sum of float32 probabilities may pass 1 by rounding; more than that, or NaN, is left for require_usable
        mass = np.where((mass > 1) & (mass < 1 + 1e-3), 1.0, mass)
        return [Score(float(value)) for value in mass]


def token_texts(session: Session, points: Sequence[CheckPoint]) -> Sequence[Mapping[str, float]]:
    """What a session with `Capability.TOKEN_TEXTS` tells of each point: text of a token -> its log-probability."""
    return cast("TokenTextSession", session).next_token_texts(points)


def calibrate_openers(
    refusal_logprobs: np.ndarray,
    compliance_logprobs: np.ndarray,
    candidate_ids: Sequence[int],
    *,
    min_ratio: float = 2.0,
) -> tuple[int, ...]:
    """Choose the openers that a model's refusals begin with and its other answers do not.

    Harmless answers begin with "I" as well: a candidate is kept if its mean probability after requests that the model
    refuses is more than `min_ratio` times that after requests that it answers.

    Args:
        refusal_logprobs: Log-probabilities after the header of refused requests, float `[n, vocab_size]`, n ≥ 1.
        compliance_logprobs: Log-probabilities of answered requests, float `[m, vocab_size]`, m ≥ 1.
        candidate_ids: Token ids to choose from.
        min_ratio: How many times more probable an opener must be, at least 1.

    Raises:
        ConfigError: The arrays do not fit together, or no candidate is kept.
    """
    refusals, compliances = np.asarray(refusal_logprobs, np.float64), np.asarray(compliance_logprobs, np.float64)
    if refusals.ndim != 2 or compliances.ndim != 2 or refusals.shape[1] != compliances.shape[1]:
        raise ConfigError(
            f"log-probabilities are {refusals.shape} and {compliances.shape}; both must be [n, vocab_size]"
        )
    if not len(refusals) or not len(compliances):
        raise ConfigError("log-probabilities of at least one refused and one answered request are needed")
    if min_ratio < 1:
        raise ConfigError(f"min_ratio is {min_ratio!r}; it must be at least 1")
    ids = np.array(sorted(set(candidate_ids)), dtype=np.int64)
    if len(ids) and not (ids[0] >= 0 and ids[-1] < refusals.shape[1]):
        raise ConfigError(f"candidate ids go from {ids[0]} to {ids[-1]}, the vocabulary has {refusals.shape[1]}")
    refusing, complying = np.exp(refusals[:, ids]).mean(axis=0), np.exp(compliances[:, ids]).mean(axis=0)
    kept = tuple(ids[refusing > min_ratio * complying].tolist())
    if not kept:
        raise ConfigError(
            "no opener is more probable in this model's refusals than in its answers; use Rethink(mode='look-ahead')"
        )
    return kept


def _first_tokens(openers: RefusalOpeners, backend: Reader) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of the openers that stand for a refusal alone, and of all openers."""
    clear = backend.first_token_ids(openers.clear)
    shared = set(backend.first_token_ids(openers.ambiguous)) | set(backend.first_token_ids(openers.compliance))
    return tuple(sorted(set(clear) - shared)), tuple(sorted({*clear, *backend.first_token_ids(openers.ambiguous)}))
