"""Let the bare model write answers to many prompts, in batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from anydepth.backends.protocol import Backend
from anydepth.templates.template import Prompt
from anydepth.types import FinishReason

ROWS = 48
TOKENS_A_BATCH = 16_384

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Continuation:
    """What the model wrote after one prompt.

    Attributes:
        token_ids: New tokens, the end of turn left out.
        finish_reason: `stop` or `length`.
        end_tokens: How many end-of-turn tokens followed (0 or 1).
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    end_tokens: int = 0


def batches(
    items: Sequence[Item],
    prompt_of: Callable[[Item], Prompt],
    max_new_tokens: int,
    key_of: Callable[[Item], str],
    *,
    rows: int | None = None,
) -> Iterator[list[Item]]:
    """Put items with prompts of about the same length together, at most `rows` (or `ROWS`); the same in every run.

    A batch is padded to its longest: none is more than twice as long, its answer counted, as the shortest.
    """
    batch: list[Item] = []
    shortest = 0
    for item in sorted(items, key=lambda item: (len(prompt_of(item).ids), key_of(item))):
        length = len(prompt_of(item).ids) + max_new_tokens
        full = len(batch) == (rows or ROWS) or (len(batch) + 1) * length > TOKENS_A_BATCH or length > 2 * shortest
        if batch and full:
            yield batch
            batch = []
        if not batch:
            shortest = length
        batch.append(item)
    if batch:
        yield batch


def write_batch(
    backend: Backend, prompts: Sequence[Prompt], *, max_new_tokens: int, seed: int, sampling: Mapping[str, Any]
) -> list[Continuation]:
    """Continue all prompts in one session, unguarded; `sampling` are options of the engine."""
    tokens: list[tuple[int, ...]] = [()] * len(prompts)
    written: dict[int, Continuation] = {}
    with closing(backend.open(prompts, max_new_tokens=max_new_tokens, seed=seed, **sampling)) as session:
        while len(written) < len(prompts):  # a decode ends with the first row that ends
            for row, got in enumerate(session.decode(max_new_tokens)):
                tokens[row] += got.token_ids[: len(got.token_ids) - got.end_tokens]
                if got.finish_reason is not None:
                    written[row] = Continuation(tokens[row], got.finish_reason, got.end_tokens)
    return [written[row] for row in range(len(prompts))]
