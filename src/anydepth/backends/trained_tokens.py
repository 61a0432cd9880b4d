"""Safety Tokens that were trained: embeddings that a check feeds in the place of the template's header.

They stand directly behind the answer's tokens so far, at depth 0 behind the whole generation prompt.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, cast

from anydepth.backends.protocol import Capability, CheckPoint, FinishedAnswer, Read, Reader, Session, Site
from anydepth.errors import CapabilityError

if TYPE_CHECKING:
    import numpy as np

REMEDY = "load the model with Transformers, or give a probe that reads the template's header"
"""What is left for an engine that cannot feed embeddings."""


class EmbeddingSession(Session, Protocol):
    """A session of a backend that can feed embeddings (`Capability.EMBEDDINGS`)."""

    def hidden_states(
        self, points: Sequence[CheckPoint], reads: Sequence[Read], *, embeddings: "np.ndarray | None" = None
    ) -> "np.ndarray":
        """As `Session.hidden_states`, behind `embeddings`, float32 `[tokens, hidden_size]`, instead of the header.

        A read's token is then an index in `embeddings`.
        """
        ...


class EmbeddingReader(Reader, Protocol):
    """A backend that can feed embeddings (`Capability.EMBEDDINGS`)."""

    def prove(
        self, needs: frozenset[Capability], reads: Sequence[Read], *, embeddings: "np.ndarray | None" = None
    ) -> None:
        """As `Reader.prove`, with `embeddings`, float32 `[tokens, hidden_size]`, in the place of the header.

        Raises:
            UnsupportedModel: Also where the model looks at the id of a token elsewhere than in its embedding.
        """
        ...

    def read_batch(
        self,
        answers: Sequence[FinishedAnswer],
        sites: Sequence[Site],
        *,
        tokens: Sequence[int],
        suffix: Sequence[int] | None = None,
        embeddings: "np.ndarray | None" = None,
    ) -> Sequence[Mapping[Site, "np.ndarray"]]:
        """As `Reader.read_batch`, with `embeddings`, float32 `[tokens, hidden_size]`, in the place of the header."""
        ...


def states_at(
    session: Session, points: Sequence[CheckPoint], reads: Sequence[Read], embeddings: "np.ndarray | None"
) -> "np.ndarray":
    """`Session.hidden_states`, behind `embeddings` if there are any, else behind the header."""
    if embeddings is None:
        return session.hidden_states(points, reads)
    return cast(EmbeddingSession, session).hidden_states(points, reads, embeddings=embeddings)


def prove_checks(
    reader: Reader, needs: frozenset[Capability], reads: Sequence[Read], embeddings: "np.ndarray | None"
) -> None:
    """`Reader.prove`, with `embeddings` if there are any; CapabilityError if the reader cannot feed them."""
    if embeddings is None:
        reader.prove(needs, reads)
    else:
        require_embeddings(reader).prove(needs, reads, embeddings=embeddings)


def read_finished(
    reader: Reader,
    answers: Sequence[FinishedAnswer],
    sites: Sequence[Site],
    *,
    tokens: Sequence[int],
    suffix: Sequence[int] | None = None,
    embeddings: "np.ndarray | None" = None,
) -> Sequence[Mapping[Site, "np.ndarray"]]:
    """`Reader.read_batch`, with `embeddings` if there are any; CapabilityError if the reader cannot feed them."""
    if embeddings is None:
        return reader.read_batch(answers, sites, tokens=tokens, suffix=suffix)
    return require_embeddings(reader).read_batch(answers, sites, tokens=tokens, embeddings=embeddings)


def require_embeddings(reader: Reader) -> EmbeddingReader:
    """Return `reader` as one that can feed embeddings, else CapabilityError."""
    if Capability.EMBEDDINGS not in reader.capabilities:
        raise CapabilityError(f"{type(reader).__name__} cannot feed {Capability.EMBEDDINGS}; {REMEDY}")
    return cast(EmbeddingReader, reader)
