"""Prove, before the first answer, that checks work on a loaded model: one short trial of each kind of pass.

A check that can never work would halt every answer with the refusal, as if each user had asked for harm. So the guard
forks, reads and packs once when it is made, on a prompt of a few tokens, and compares what the fork gives with what a
pass over the whole text gives.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from anydepth.backends.protocol import Capability, FinishedAnswer, Read
from anydepth.backends.transformers.read import to_numpy
from anydepth.errors import AnydepthError, UnsupportedModel
from anydepth.templates.template import Prompt

if TYPE_CHECKING:
    from anydepth.backends.transformers.backend import TransformersBackend
    from anydepth.backends.transformers.session import TransformersSession

ANSWER_TOKENS = 3
"""Length of the trial's answer, in tokens: a cache that is not empty, and more than one token to take back."""

# States that differ by rounding alone stay far below, states read at a wrong place or over a wrong cache far above.
_FLOAT32, _HALF = 0.003, 0.5


def prove(
    backend: "TransformersBackend",
    needs: frozenset[Capability],
    reads: tuple[Read, ...],
    prompt: Prompt,
    session: "TransformersSession",
) -> None:
    """Try checks on `backend` once; see `Backend.prove`.

    Args:
        backend: The loaded model.
        needs: The capabilities that a check needs.
        reads: The hidden states that are read at a check; none for a detector that looks ahead.
        prompt: A short prompt without a prefill.
        session: A session that was opened for it and has decoded nothing.
    """
    with _trial(backend, "a check at depth 0"):
        at_start = _use(session, needs, reads)
    with _trial(backend, "decoding"):
        (decoded,) = session.decode(ANSWER_TOKENS)
        answer = decoded.token_ids[: len(decoded.token_ids) - decoded.end_tokens]
        if not answer:  # the model ends its turn at once: give it an answer, so that there is something to fork behind
            answer = _plain_tokens(backend, prompt)
            session = backend.replay(prompt, answer)
            session.decode(len(answer))
    with _trial(backend, f"a check at depth {len(answer)}"):
        first, again = (_use(session, needs, reads) for _ in range(2))
    _same(backend, first, again, "a check changes the answer's own cache: two readings of one depth")
    if not reads:
        return
    with _trial(backend, "a pass over the whole text"):
        whole = _recomputed(backend, (*prompt.ids, *answer), reads)
    _same(backend, first, whole, "a check reads another state than the text has: a fork and a pass over the whole text")
    if backend.packs:
        backend.packing_refused = _packing_fault(backend, prompt, answer, reads, np.stack([at_start, first]))


def _plain_tokens(backend: "TransformersBackend", prompt: Prompt) -> tuple[int, ...]:
    """A few tokens of the prompt that end no turn."""
    ends = backend.end_tokens({})
    return tuple([token for token in prompt.ids if token not in ends][:ANSWER_TOKENS])


def _use(session: "TransformersSession", needs: frozenset[Capability], reads: tuple[Read, ...]) -> np.ndarray:
    """Use the session as a check does.

    Returns:
        The states, float32 `[reads, hidden_size]`; for a detector that reads none, how probable each next token is
        after the header, float32 `[1, vocab_size]`.
    """
    point = session.current(0)
    if Capability.LOOK_AHEAD in needs:
        session.look_ahead([point], 1, lambda text: True)
    found = session.hidden_states([point], reads)[0] if reads else np.exp(session.next_token_logprobs([point]))
    if not np.isfinite(found).all():
        raise UnsupportedModel("what it reads is not finite")
    return found


def _recomputed(backend: "TransformersBackend", text: tuple[int, ...], reads: tuple[Read, ...]) -> np.ndarray:
    """The states behind `text` from one pass over text and header on an empty cache; float32 `[reads, hidden_size]`."""
    header = backend.header.ids[: max(read.token for read in reads) + 1]
    ids = torch.tensor([[*text, *header]], device=backend.model.device)
    sites = tuple(dict.fromkeys(read.site for read in reads))
    states = backend.read_tokens(ids, backend.new_cache(ids.shape[1], {}), torch.ones_like(ids), sites)
    return np.stack([to_numpy(states[read.site][0, len(text) + read.token]) for read in reads])


def _packing_fault(
    backend: "TransformersBackend",
    prompt: Prompt,
    answer: tuple[int, ...],
    reads: tuple[Read, ...],
    forked: np.ndarray,
) -> str | None:
    """Why a packed pass does not give the states of the forks, float32 `[2, reads, hidden_size]`; None if it does."""
    sites = tuple(dict.fromkeys(read.site for read in reads))
    tokens = sorted({read.token for read in reads})
    finished = FinishedAnswer(prompt, answer, (0, len(answer)))
    try:
        (states,) = backend.read_batch([finished], sites, tokens=tokens)
    except Exception as error:  # the model's own code, which was not made for such a mask: forks are read instead
        return f"a packed pass failed in a trial: {type(error).__name__}: {error}"
    packed = np.stack([states[read.site][:, tokens.index(read.token)] for read in reads], 1)
    off = max(_difference(mine, theirs) for mine, theirs in zip(packed, forked, strict=True))
    return None if off <= _tolerance(backend) else f"a packed pass gives states that differ from a fork's by {off:.0%}"


def _same(backend: "TransformersBackend", one: np.ndarray, other: np.ndarray, what: str) -> None:
    off = _difference(one, other)
    if off > _tolerance(backend):
        raise _refused(backend, f"{what} differ by {off:.1%}")


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Length of the difference over the length of `other`, the largest of all reads."""
    each = np.linalg.norm(one - other, axis=-1) / np.maximum(np.linalg.norm(other, axis=-1), 1e-12)
    return float(each.max())


def _tolerance(backend: "TransformersBackend") -> float:
    quantised = getattr(backend.model, "hf_quantizer", None) is not None
    quantised = quantised or backend.model.generation_config.cache_implementation == "quantized"
    return _FLOAT32 if backend.model.dtype == torch.float32 and not quantised else _HALF


@contextmanager
def _trial(backend: "TransformersBackend", what: str) -> Iterator[None]:
    """Turn whatever the model's own code raises into the reason why this model is refused."""
    try:
        yield
    except AnydepthError as error:
        raise _refused(backend, f"{what} failed in a trial: {error}") from error
    except Exception as error:
        raise _refused(backend, f"{what} failed in a trial: {type(error).__name__}: {error}") from error


def _refused(backend: "TransformersBackend", why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"checks do not work on {backend.identity.name} ({type(backend.model).__name__}): {why.rstrip('.')}"
    )
