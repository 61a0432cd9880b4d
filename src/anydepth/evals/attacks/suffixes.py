"""Search for suffixes, each once, and keep what was found."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from anydepth.errors import ConfigError
from anydepth.evals.attacks.gcg import Budget, Evasion, Suffix, Told

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend
    from anydepth.evals.context import Context


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
        seed: Seed of every choice that is drawn.
        evasion: A guard to get past; None is plain GCG.
        told: Called with the steps made, and how many there may be.

    Raises:
        ConfigError: The target has no tokens, or no suffix survives being tokenised again.
    """
    from anydepth.evals.attacks.gcg_search import Search

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
            context.texts.write(key, {"id": key, **asdict(found)})
        row = context.texts.rows[key]
        context.record(key, lambda row=row: {name: row[name] for name in ("loss", "start", "steps")})
    return {item: context.texts.rows[suffix_key(name, item)]["text"] for item in requests}


def suffix_key(name: str, item: str) -> str:
    """Id of the suffix that the attack `name` has found for the request `item`."""
    return f"{name}-suffix|{item}"
