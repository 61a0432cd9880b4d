"""Prove, before the first answer, that checks work on a loaded model: one short trial of each kind of pass.

A check that can never work would halt every answer with the refusal, as if each user had asked for harm. So the guard
forks, reads and packs once when it is made, on a prompt of a few tokens, and compares what the fork gives with what a
pass over the whole text gives.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from anydepth.backends.protocol import Capability, FinishedAnswer, Read, sites_of
from anydepth.backends.transformers import packed
from anydepth.backends.transformers.answer_states import AnswerSpan
from anydepth.backends.transformers.branch import Branch
from anydepth.backends.transformers.passes import GREEDY, Passes
from anydepth.backends.transformers.read import to_numpy
from anydepth.backends.transformers.replay_session import ReplaySession
from anydepth.backends.transformers.riding_session import RidingSession
from anydepth.backends.transformers.session import TransformersSession
from anydepth.errors import AnydepthError, UnsupportedModel
from anydepth.templates.template import Prompt

ANSWER_TOKENS = 3
"""Length of the trial's answer, in tokens: a cache that is not empty, and more than one token to take back."""

# States that differ by rounding alone stay far below, states read at a wrong place or over a wrong cache far above.
_FLOAT32, _HALF = 0.003, 0.5


@dataclass(frozen=True, slots=True)
class WantedCheck:
    """What a trial tries.

    Attributes:
        needs: The capabilities that a check needs.
        reads: The hidden states that are read at a check; none for a detector that looks ahead.
        embeddings: What stands in the place of the header, float32 `[tokens, hidden_size]`, if anything does.
    """

    needs: frozenset[Capability]
    reads: tuple[Read, ...]
    embeddings: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class TrialCheck:
    """What a trial measured: relative differences, each the largest of all reads.

    Of a detector that reads no state, they are those of the next token's probabilities.

    Attributes:
        again: Between two readings of one depth, on two forks.
        whole: Between a fork and a pass over the whole text.
        packed: Between a packed pass and the forks; None where no state is read, or not in one pass.
    """

    again: float
    whole: float
    packed: float | None = None


def prove(passes: Passes, wanted: WantedCheck, prompt: Prompt) -> TrialCheck:
    """Try checks on a model once; see `Backend.prove`.

    Sets `packing_refused` where only a packed pass failed, and `riding_refused` where checks can be made on forks only.

    Args:
        passes: The loaded model.
        wanted: What to try.
        prompt: A short prompt without a prefill.
    """
    if wanted.embeddings is not None:
        _try_ids(passes, wanted, prompt)
    # the cache is of the kind that answers and checks will be on, the model's own
    options = {name: value for name, value in GREEDY.items() if name not in ("cache_implementation", "cache_config")}
    with passes.lock:
        session = TransformersSession(passes, [prompt], budget=ANSWER_TOKENS, seed=0, options=options)
        with closing(session):
            found = _prove(session, wanted, prompt)
        if wanted.reads and passes.rides({}):
            passes.riding_refused = _try_riding(passes, options, wanted, prompt)
            passes.rides({})  # raises where riding was asked for by all means
        return found


def _try_ids(passes: Passes, wanted: WantedCheck, prompt: Prompt) -> None:
    """UnsupportedModel if the states of embeddings depend on the ids that they are fed with.

    A model may look an id up a second time (a table for each block), or not run its embedding table where it is said
    to be. Nothing can be trained or read there.
    """
    embeddings, sites, found = wanted.embeddings, sites_of(wanted.reads), []
    assert embeddings is not None
    ids = passes.stand_ins(embeddings)
    others = tuple(next(other for other in prompt.ids if other != token) for token in ids)
    with passes.lock, _trial(passes, "a check of trained Safety Tokens"):
        for each in (ids, others):
            branch = Branch.fresh((*prompt.ids, *each), passes.model.device)
            states = passes.read_branch(branch, sites, embeddings)
            found.append(np.stack([to_numpy(states[site][0, -len(ids) :]) for site in sites]))
    if not np.array_equal(*found):
        raise _refused(
            passes,
            "what it makes of an embedding depends on the token's id too, and trained Safety Tokens have none; give a "
            "probe that reads the template's header",
        )


def _prove(session: TransformersSession, wanted: WantedCheck, prompt: Prompt) -> TrialCheck:
    passes, reads, embeddings = session.passes, wanted.reads, wanted.embeddings
    with _trial(passes, "a check at depth 0"):
        at_start = _use(session, wanted)
    with _trial(passes, "decoding"):
        (decoded,) = session.decode(ANSWER_TOKENS)
        answer = decoded.token_ids[: len(decoded.token_ids) - decoded.end_tokens]
        if not answer:  # the model ends its turn at once: give it an answer, so that there is something to fork behind
            ends = passes.end_tokens({})
            answer = tuple([token for token in prompt.ids if token not in ends][:ANSWER_TOKENS])
            session = ReplaySession(passes, [prompt], [answer])
            if reads:
                _use(session, wanted)  # from here on it keeps the states that means are taken of
            session.decode(len(answer))
    with _trial(passes, f"a check at depth {len(answer)}"):
        first, again = (_use(session, wanted) for _ in range(2))
    twice = _same(passes, first, again, "a check changes the answer's own cache: two readings of one depth")
    with _trial(passes, "a pass over the whole text"):
        text = Branch.fresh((*prompt.ids, *answer), passes.model.device)
        if reads:
            whole = passes.read_header(text, reads, AnswerSpan((len(prompt.ids),)), embeddings)[0]
        else:
            whole = np.exp(to_numpy(passes.next_logprobs(text.append(passes.header.ids + passes.header.answer_ids))))
    what = "another state than the text has" if reads else "other probabilities than the text gives"
    off = _same(passes, first, whole, f"a check finds {what}: a fork and a pass over the whole text")
    if not reads:
        return TrialCheck(twice, off)
    if packed.refusal(passes) is not None:
        return TrialCheck(twice, off)
    found = _try_packing(passes, prompt, answer, wanted, np.stack([at_start, first]))
    if isinstance(found, str):
        passes.packing_refused = found
        return TrialCheck(twice, off)
    return TrialCheck(twice, off, found)


def _use(session: TransformersSession, wanted: WantedCheck) -> np.ndarray:
    """Use the session as a check does.

    Returns:
        The states, float32 `[reads, hidden_size]`; for a detector that reads none, how probable each next token is
        after the header, float32 `[1, vocab_size]`.
    """
    point = session.current(0)
    if Capability.LOOK_AHEAD in wanted.needs:
        session.look_ahead([point], 1, lambda text: True)
    if wanted.reads:
        found = session.hidden_states([point], wanted.reads, embeddings=wanted.embeddings)[0]
    else:
        found = np.exp(session.next_token_logprobs([point]))
    if not np.isfinite(found).all():
        raise UnsupportedModel("what it reads is not finite")
    return found


def _try_packing(
    passes: Passes, prompt: Prompt, answer: tuple[int, ...], wanted: WantedCheck, forked: np.ndarray
) -> float | str:
    """How far a packed pass is off the states of the forks, float32 `[2, reads, hidden_size]`; or why it fails."""
    reads, own = wanted.reads, wanted.embeddings
    tokens = sorted({read.token for read in reads})
    finished = FinishedAnswer(prompt, answer, (0, len(answer)))
    try:
        with passes.reading_weights():
            (states,) = packed.read_batch(passes, [finished], sites_of(reads), tokens=tokens, embeddings=own)
    except Exception as error:  # the model's own code, which was not made for such a mask: forks are read instead
        return f"a packed pass failed in a trial: {type(error).__name__}: {error}"
    found = np.stack([states[read.site][:, tokens.index(read.token)] for read in reads], 1)
    off = max(_difference(mine, theirs) for mine, theirs in zip(found, forked, strict=True))
    return off if off <= _tolerance(passes) else f"a packed pass gives states that differ from a fork's by {off:.0%}"


def _try_riding(passes: Passes, options: dict[str, Any], wanted: WantedCheck, prompt: Prompt) -> str | None:
    """Why checks cannot ride in the decode step, or None: a trial of an answer, each token of which is checked."""
    options = {**options, "suppress_tokens": sorted(passes.end_tokens({})) or None}
    tolerance, reads, own = _tolerance(passes), wanted.reads, wanted.embeddings
    try:
        with closing(RidingSession(passes, [prompt], budget=ANSWER_TOKENS + 1, seed=0, options=options)) as session:
            session.hidden_states([session.current(0)], reads, embeddings=own)
            text = list(prompt.ids)
            for _ in range(ANSWER_TOKENS):
                text += session.decode(1)[0].token_ids
                found = session.hidden_states([session.current(0)], reads, embeddings=own)[0]
                assert session.ridden is not None
                whole = Branch.fresh(text, passes.model.device)
                expected = passes.read_header(whole, reads, AnswerSpan((len(prompt.ids),)), own)[0]
                following = to_numpy(session.ridden.output.logits[0].float().softmax(-1))
                plain = np.exp(to_numpy(passes.next_logprobs(whole)))
                states, token = _difference(found, expected), _difference(following, plain)
                if not (states <= tolerance and token <= tolerance):  # so written that NaN is a difference
                    return f"in a trial, states differ by {states:.1%}, probabilities of the next token by {token:.1%}"
    except Exception as error:  # the model's own code: checks are made on forks instead
        return f"a trial failed: {type(error).__name__}: {error}"
    return None


def _same(passes: Passes, one: np.ndarray, other: np.ndarray, what: str) -> float:
    """The difference of two readings; UnsupportedModel if it is too large."""
    off = _difference(one, other)
    if off > _tolerance(passes):
        raise _refused(passes, f"{what} differ by {off:.1%}")
    return off


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Length of the difference over the length of `other`, the largest of all reads."""
    each = np.linalg.norm(one - other, axis=-1) / np.maximum(np.linalg.norm(other, axis=-1), 1e-12)
    return float(each.max())


def _tolerance(passes: Passes) -> float:
    quantised = getattr(passes.model, "hf_quantizer", None) is not None
    quantised = quantised or passes.model.generation_config.cache_implementation == "quantized"
    return _FLOAT32 if passes.model.dtype == torch.float32 and not quantised else _HALF


@contextmanager
def _trial(passes: Passes, what: str) -> Iterator[None]:
    """Turn whatever the model's own code raises into the reason why this model is refused."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, AnydepthError) else f"{type(error).__name__}: "
        raise _refused(passes, f"{what} failed in a trial: {kind}{error}") from error


def _refused(passes: Passes, why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"checks do not work on {passes.identity.name} ({type(passes.model).__name__}): {why.rstrip('.')}"
    )
