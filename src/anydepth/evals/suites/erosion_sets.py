"""Choose the answers that the erosion suite measures at every stage."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from anydepth.conversations.dataset import Conversation
from anydepth.errors import ConfigError
from anydepth.evals.answers.forced import force
from anydepth.evals.answers.sets import trained_on
from anydepth.evals.context import Context
from anydepth.evals.suites.erosion_figures import BENIGN, REQUESTS
from anydepth.templates.template import Prompt

DEPTHS = (25, 100)
"""Tokens of a harmful answer that are forced."""

_HELD_OUT = ("prompts_advbench", "prompts_strongreject")
_SPARE = 40


@dataclass(frozen=True, slots=True)
class MeasuredSet:
    """Answers of one kind that are measured at every stage.

    Attributes:
        name: What they are: requests, prefills of a depth, or stored harmless answers.
        rows: The conversations, by their id.
        prompts: What the model goes on from; empty for stored answers.
        stored: The first tokens of stored answers.
    """

    name: str
    rows: Mapping[str, Conversation]
    prompts: Mapping[str, Prompt] = field(default_factory=dict)
    stored: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def asked_sets(context: Context, count: int, benign_tokens: int) -> Iterator[MeasuredSet]:
    """Requests, forced beginnings of harmful answers, and harmless answers; none of them is trained on."""
    first, second = (not_trained_on(name, context.table(name)) for name in _HELD_OUT)
    asked = first[: -(-count // 2)]
    asked += second[: count - len(asked)]
    if not asked:
        raise ConfigError(f"suite {context.suite}: the probe was trained on all of {', '.join(_HELD_OUT)}; give more")
    yield MeasuredSet(REQUESTS, _by_id(asked), {row.id: context.prompt(row) for row in asked})
    pairs = context.table("pairs_deep_validation", label="harmful", limit=10 * count, unseen=True)
    long = [each.row for each in force(context, "harmful", pairs, (), max(DEPTHS))][:count]
    if not long:
        raise ConfigError(f"suite {context.suite}: no harmful answer has {max(DEPTHS)} tokens; give longer ones")
    for depth in DEPTHS:
        forced = force(context, "harmful", long, (), depth)
        yield MeasuredSet(f"prefill {depth}", _by_id(long), {each.row.id: each.prompt for each in forced})
    benign = context.table("pairs_benign_validation", label="benign", limit=count, unseen=True)
    stored = {}
    for row in benign:
        prompt = context.prompt(row, prefill=row.response)
        stored[row.id] = prompt.ids[prompt.start :][:benign_tokens]
    yield MeasuredSet(BENIGN, _by_id(benign), stored=stored)


def not_trained_on(name: str, rows: Sequence[Conversation]) -> list[Conversation]:
    """Rows of a table, of different prompts, that the recipe of the shipped probes does not train on.

    Which ones it takes depends on what else it leaves out as near-duplicates; some more are left out to make up for it.
    """
    taken = {row.prompt_key for row in trained_on(name, rows, _SPARE)}
    return list({row.prompt_key: row for row in reversed(rows) if row.prompt_key not in taken}.values())[::-1]


def _by_id(rows: Sequence[Conversation]) -> dict[str, Conversation]:
    return {row.id: row for row in rows}
