"""Search for a suffix that makes a model begin a wanted answer (GCG, arXiv 2307.15043)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anydepth.errors import ConfigError

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend
    from anydepth.detectors import LinearProbe
    from anydepth.evals.context import Context

START = " x" * 20
"""The suffix that a search begins with: twenty tokens of little meaning, with a space before each."""

Told = Callable[[int, int], None]

_NUMBERS = ("loss", "start", "steps")


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a search may cost.

    Attributes:
        steps: Steps at most; fewer if the model begins the wanted answer by itself.
        width: Suffixes that are tried in a step; those that tokenise differently when read again are left out.
        target: Tokens of the wanted answer at most.
        top: Tokens with the best gradient that are drawn from, at each position.
        batch: Suffixes in one forward pass.
    """

    steps: int
    width: int
    target: int = 16
    top: int = 128
    batch: int = 16

    def __post_init__(self) -> None:
        for name in ("steps", "width", "target", "top", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of a GCG search is {getattr(self, name)}; give at least 1")


@dataclass(frozen=True, slots=True)
class Evasion:
    """A guard that a search tries to get past as well.

    Attributes:
        probe: The guard's probe; its logit at depth 0 and behind the target is part of the loss.
        weight: Of that part: loss = target's cross-entropy + weight × mean softplus(logit).
    """

    probe: "LinearProbe"
    weight: float


@dataclass(frozen=True, slots=True)
class Suffix:
    """What a search found.

    Attributes:
        text: Goes behind the request as it is.
        loss: The loss with it.
        start: The loss that the search began with.
        steps: Steps that were made.
    """

    text: str
    loss: float
    start: float
    steps: int


def find_suffix(
    backend: "TransformersBackend",
    request: str,
    target: str,
    budget: Budget,
    *,
    seed: int,
    evasion: Evasion | None = None,
    told: Told = lambda done, total: None,
) -> Suffix:
    """Search for text behind `request` after which the model begins with `target`.

    Args:
        backend: The model, whose gradients are needed.
        request: A user message.
        target: How the wanted answer begins.
        budget: What it may cost.
        seed: Of every choice that is drawn.
        evasion: A guard to get past; None is plain GCG.
        told: Told the steps made, and how many there may be.

    Raises:
        ConfigError: The target has no tokens, or no suffix survives being tokenised again.
    """
    from anydepth.evals.gcg_search import Search

    if not target.strip():
        raise ConfigError("a GCG search needs the beginning of the answer that it is to bring about; give a target")
    return Search(backend, budget, evasion, told).find(request, target, seed)


def searched(
    context: "Context",
    name: str,
    requests: Mapping[str, tuple[str, str]],
    budget: Budget,
    evasion: Evasion | None = None,
) -> dict[str, str]:
    """A suffix for each request, by its id; those that an earlier run has found are not searched for again.

    Args:
        context: The suite's run; suffixes go to its texts, losses to its records.
        name: Of the attack, for the ids.
        requests: Id -> request, and how the wanted answer begins.
        budget: What each search may cost.
        evasion: See `find_suffix`.
    """
    for number, (item, (request, target)) in enumerate(requests.items()):
        key = suffix_key(name, item)
        if key not in context.texts:

            def told(done: int, total: int, number: int = number) -> None:
                context.told(f"search suffixes ({name})", number * total + done, len(requests) * total)

            seed = context.digest(name, item)
            found = find_suffix(context.backend, request, target, budget, seed=seed, evasion=evasion, told=told)
            context.texts.write(key, {"id": key, "text": found.text, **{n: getattr(found, n) for n in _NUMBERS}})
        row = context.texts.rows[key]
        context.record(key, lambda row=row: {n: row[n] for n in _NUMBERS})
    return {item: context.texts.rows[suffix_key(name, item)]["text"] for item in requests}


def suffix_key(name: str, item: str) -> str:
    """Id of the suffix that the attack `name` has found for the request `item`."""
    return f"{name}-suffix|{item}"
