"""Score a check with a linear probe on the Safety Tokens' hidden state (paper, ADA-LP)."""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from anydepth.atomic import write_whole
from anydepth.backends.altered_weights import alterations
from anydepth.backends.protocol import Capability, CheckPoint, Read, Reader, Session
from anydepth.detectors.card import FORMAT_VERSIONS, WAIVABLE, ProbeCard, card_from, card_record, mismatches
from anydepth.detectors.detector import check_states, require_capabilities
from anydepth.detectors.drift_warning import drift_warning
from anydepth.errors import CheckError, ConfigError, ProbeError, ProbeMismatch, RecordError
from anydepth.jsonl import as_object, read_value
from anydepth.policy import Policy, policy_from
from anydepth.reasons import reason
from anydepth.types import Score

logger = logging.getLogger(__name__)

SAFETY_TOKENS = "safety_tokens"
"""Name of the tensor with the trained Safety Tokens, float32 `[tokens, hidden_size]`; absent for most probes."""

FILE_NAME = "probe.safetensors"
"""Name of the artefact in a probe folder, beside its model card."""


class LinearProbe:
    """Scores a check as sigmoid(Σ w·h + b), h the hidden state of each read (paper, ADA-LP, has one read).

    Args:
        weight: The direction, float `[reads, hidden_size]`, or `[hidden_size]` for one read; kept as float32. Any
            standardisation is folded in.
        bias: The offset.
        card: What the probe belongs to and where it comes from.
        embeddings: Trained Safety Tokens, float `[card.safety_tokens, hidden_size]`, kept as float32: what is fed in
            the place of the header, as the model's embedding table would give it. None to read the header.
        allow_mismatch: Of `{"model", "template"}`, what may differ from the card: for research on fine-tuned weights.
            Hidden size, header and site cannot be waived; a score read elsewhere means nothing.

    Raises:
        ProbeError: The weight has another shape than the card's hidden size, or a value that is not finite; or the
            embeddings are not those that the card speaks of.
        ConfigError: `allow_mismatch` names something that cannot be waived.
    """

    name = "probe"
    needs = frozenset({Capability.HIDDEN_STATES})

    def __init__(
        self,
        weight: np.ndarray,
        bias: float,
        card: ProbeCard,
        *,
        embeddings: np.ndarray | None = None,
        allow_mismatch: Iterable[str] = frozenset(),
    ) -> None:
        self.weight = np.atleast_2d(np.array(weight, dtype=np.float32))
        self.weight.setflags(write=False)
        self.bias = float(np.float32(bias))  # what `save` stores, so that a saved probe scores the same
        self.card = card
        self.allow_mismatch = frozenset(allow_mismatch)
        if self.allow_mismatch - WAIVABLE:
            raise ConfigError(
                f"allow_mismatch names {sorted(self.allow_mismatch - WAIVABLE)}; only {sorted(WAIVABLE)} can be waived"
            )
        if self.weight.shape != (len(card.reads), card.model.hidden_size):
            raise ProbeError(
                f"the weight has the shape {list(self.weight.shape)}, the card says {len(card.reads)} reads of hidden "
                f"size {card.model.hidden_size}; fit the probe again with `anydepth fit`"
            )
        if not (np.isfinite(self.weight).all() and np.isfinite(self.bias)):
            raise ProbeError("the weight or bias is not finite; fit the probe again with `anydepth fit`")
        self._told: set[str] = set()
        self.embeddings = _own_tokens(embeddings, card)
        if self.embeddings is not None:
            self.needs = self.needs | {Capability.EMBEDDINGS}

    @property
    def numbers(self) -> bytes:
        """Weight and trained Safety Tokens, byte by byte: with the bias, what scores depend on beside the states."""
        return self.weight.tobytes() + (b"" if self.embeddings is None else self.embeddings.tobytes())

    def with_card(self, card: ProbeCard) -> "LinearProbe":
        """This probe with another card; ProbeError if it speaks of other reads or Safety Tokens."""
        given = {"embeddings": self.embeddings, "allow_mismatch": self.allow_mismatch}
        return LinearProbe(self.weight, self.bias, card, **given)

    @property
    def policy(self) -> Policy | None:
        """The policy that the probe was calibrated with, or None."""
        return None if self.card.policy is None else policy_from(self.card.policy)

    @property
    def reads(self) -> tuple[Read, ...]:
        """Which hidden states are read at a check."""
        return self.card.reads

    def bind(self, backend: Reader) -> None:
        """Refuse a backend that the probe was not fitted on; see `Detector.bind`.

        Quantised weights and adapters are taken. What the probe is worth on them is logged as a warning, once: the loss
        that the card has, or that none was measured.

        Raises:
            CapabilityError: The backend gives no hidden states.
            ProbeMismatch: Model, template, header or site differ; the message has each one with both values.
        """
        require_capabilities(self, backend)
        found = mismatches(self.card, backend)
        fatal = [message for what, message in found.items() if what not in self.allow_mismatch]
        if fatal:
            raise ProbeMismatch("the probe does not belong to this model. " + ". ".join(fatal))
        if (warning := drift_warning(self.card, alterations(backend))) is not None and warning not in self._told:
            self._told.add(warning)
            logger.warning("%s", warning)

    def check(self, session: Session, points: Sequence[CheckPoint]) -> list[Score]:
        """Score each point; CheckError names the depth whose hidden state or score is not finite."""
        return check_states(self, session, points)

    def score_each(self, states: np.ndarray) -> list[Score | Exception]:
        """Score states, float `[n, reads, hidden_size]`, one by one; a CheckError stands for one that is not finite.

        Raises:
            CheckError: The states have another shape.
        """
        states = np.asarray(states, dtype=np.float64)
        if states.ndim != 3 or states.shape[1:] != self.weight.shape:
            raise CheckError(f"hidden states have the shape {states.shape}, the probe needs [n, *{self.weight.shape}]")
        states = states.reshape(len(states), -1)
        finite = np.logical_and.reduce(np.isfinite(states), axis=1)
        # float64: a float32 sum over thousands of widths with values of 1e4 would lose the digits that decide
        logits = np.where(finite[:, None], states, 0.0) @ self.weight.ravel().astype(np.float64) + self.bias
        probabilities = np.exp(-np.logaddexp(0.0, -logits))  # sigmoid without overflow
        return [
            Score(float(probability)) if usable else CheckError("the hidden state is not finite")
            for probability, usable in zip(probabilities, finite & np.isfinite(probabilities), strict=True)
        ]

    @classmethod
    def load(cls, path: str | Path, *, allow_mismatch: Iterable[str] = frozenset()) -> "LinearProbe":
        """Read a probe artefact.

        Args:
            path: A safetensors file that `save` wrote, or the probe folder that holds it as `probe.safetensors`.
            allow_mismatch: See the class.

        Raises:
            ProbeError: The file is missing, truncated or not a probe, or of a format version that is not known.
        """
        path = Path(path)
        path = path / FILE_NAME if os.path.isdir(path) else path  # noqa: PTH112 (Path.is_dir raises for a long name)
        tensors, metadata = _read(path)
        try:
            weight = _tensor(tensors, "weight", 2)
            bias = _tensor(tensors, "bias", 1)
            if bias.shape != (1,):
                raise ProbeError(f"tensor 'bias' has the shape {list(bias.shape)}, not [1]")
            own = _tensor(tensors, SAFETY_TOKENS, 2) if SAFETY_TOKENS in tensors else None
            return cls(weight, float(bias[0]), _card(metadata), embeddings=own, allow_mismatch=allow_mismatch)
        except ProbeError as error:
            raise ProbeError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the artefact whole or not at all; a link is followed, and a file that is there keeps its mode.

        Raises:
            ProbeError: The file is read-only or a folder, or cannot be written; or the card is not JSON.
        """
        content = self._artefact()
        try:
            write_whole(path, content)
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            raise ProbeError(f"cannot write the probe {path}: {getattr(error, 'strerror', None) or error}") from error

    def _artefact(self) -> bytes:
        try:
            card = json.dumps(card_record(self.card), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ProbeError(f"the probe's card cannot be stored as JSON: {error}") from error
        # safetensors writes memory as it lies: a transposed array would come back in another order, without an error
        tensors = {"weight": np.array(self.weight, order="C"), "bias": np.array([self.bias], dtype=np.float32)}
        if self.embeddings is not None:
            tensors[SAFETY_TOKENS] = np.array(self.embeddings, order="C")
        return safetensors.numpy.save(tensors, {"format_version": self.card.format_version, "anydepth": card})


def _own_tokens(embeddings: np.ndarray | None, card: ProbeCard) -> np.ndarray | None:
    """The trained Safety Tokens as float32, if they are what the card says; else ProbeError."""
    if embeddings is None and not card.safety_tokens:
        return None
    found = np.array([] if embeddings is None else embeddings, dtype=np.float32)
    want = (card.safety_tokens, card.model.hidden_size)
    if found.shape != want:
        there = f"the shape {list(found.shape)}" if found.size else "none"
        raise ProbeError(
            f"the card speaks of {want[0]} trained Safety Tokens of width {want[1]}, the tensor {SAFETY_TOKENS!r} has "
            f"{there}; the artefact is damaged, fit the probe again with `anydepth fit`"
        )
    if not np.isfinite(found).all():
        raise ProbeError("a trained Safety Token is not finite; fit the probe again with `anydepth fit`")
    found.setflags(write=False)
    return found


def find_shipped(backend: Reader, directory: Traversable | None = None) -> LinearProbe | None:
    """The probe for this model among those that the package ships, or None.

    Args:
        backend: The loaded model.
        directory: Where to look; the package's own probes by default.
    """
    for _, probe in shipped_probes(directory):
        if probe.card.model.fingerprint and not mismatches(probe.card, backend):
            return probe
    return None


def shipped_probes(directory: Traversable | None = None) -> Iterator[tuple[str, LinearProbe]]:
    """File name and probe of each that the package ships, or of those in `directory`."""
    directory = directory or resources.files("anydepth") / "data" / "probes"
    for entry in sorted(directory.iterdir(), key=lambda entry: entry.name) if directory.is_dir() else ():
        if entry.name.endswith(".safetensors"):
            with resources.as_file(entry) as path:
                yield entry.name, LinearProbe.load(path)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except FileNotFoundError as error:
        raise ProbeError(f"there is no probe at {path}; fit one with `anydepth fit`") from error
    except PermissionError as error:
        raise ProbeError(f"the probe {path} may not be read; give this user the right to read it") from error
    except Exception as error:  # only the library's calls are inside, and it has an error for each kind of damage
        why = _pointer(path) or reason(error)
        raise ProbeError(f"{path} is not a probe artefact, or was cut short ({why}); fit or fetch it again") from error


def _pointer(path: Path) -> str | None:
    """What to say of a file that git-lfs has left in the artefact's place."""
    with suppress(OSError, ValueError), path.open("rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            return "it is a git-lfs pointer, which `git lfs pull` fetches"
    return None


def _tensor(tensors: dict[str, np.ndarray], name: str, dimensions: int) -> np.ndarray:
    if name not in tensors:
        raise ProbeError(f"there is no tensor {name!r}; the file is not a probe artefact")
    tensor = tensors[name]
    if tensor.dtype != np.float32 or tensor.ndim != dimensions:
        raise ProbeError(
            f"tensor {name!r} is {tensor.dtype} {list(tensor.shape)}, not float32 of dimension {dimensions}"
        )
    return tensor


def _card(metadata: dict[str, str]) -> ProbeCard:
    version = metadata.get("format_version")
    if version not in FORMAT_VERSIONS:
        raise ProbeError(
            f"the format version is {version!r}, this version of anydepth reads {', '.join(FORMAT_VERSIONS)}; "
            "use a newer anydepth, or fit the probe again with `anydepth fit`"
        )
    try:
        record = as_object(read_value(metadata["anydepth"]))
    except (KeyError, RecordError) as error:
        raise ProbeError(f"the metadata holds no card ({error!r}); the file is not a probe artefact") from error
    return card_from(record)
