"""Choose labelled answers: to tell harmful from harmless ones by, and to check that on other sets."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from anydepth.conversations.dataset import Conversation
from anydepth.conversations.splits import balance, drop_near_duplicates
from anydepth.errors import ConfigError
from anydepth.evals.answers.answer_tables import KINDS, TABLES

if TYPE_CHECKING:
    from anydepth.evals.context import Context

DATA = "probe_train"
(DEEP,), HARMLESS = TABLES["harmful"], TABLES["benign"]


def within_sources(
    context: "Context", count: int, *, fewest: int, held_out: Sequence[Conversation]
) -> list[Conversation]:
    """`count` answers of each label from the sources that have both, spread over sources and prompts.

    Near-duplicates of `held_out` are left out. The table is `probe_train`, or the user's `--set SUITE.data=REF`.

    Raises:
        ConfigError: There is no such table, no source of it has both labels, or there are less than `fewest` answers.
    """
    if count < fewest:
        raise ConfigError(f"suite {context.suite} needs {fewest} answers of each label; give --limit of at least that")
    name = context.setting("data", DATA)
    try:
        rows = context.table(name)
    except ConfigError as error:
        raise ConfigError(f"{error}. {_remedy(context, name)}") from error
    rows = [row for row in rows if row.label and row.response]
    both = set.intersection(*({row.source for row in rows if row.label == side} for side in KINDS))
    if not both:
        raise ConfigError(
            f"suite {context.suite}: no source of {name} has harmful and benign answers; within one source at least "
            "separation must not come from telling sources apart. Give another table"
        )
    rows = [row for row in rows if row.source in both]
    if held_out:
        rows = drop_near_duplicates(rows, held_out).kept
    kept = balance(rows, per_source=-(-count // len(both)), seed=context.options.seed).kept
    found = [row for side in KINDS for row in [row for row in kept if row.label == side][:count]]
    if min(sum(row.label == side for row in found) for side in KINDS) < fewest:
        raise ConfigError(
            f"suite {context.suite}: {name} has fewer than {fewest} answers of a label; give a larger table"
        )
    return found


def other_sets(context: "Context", count: int) -> dict[str, list[Conversation]]:
    """Sets from other sources by name, `count` answers each; none with `--set SUITE.held-out=none`.

    Raises:
        ConfigError: A table is not there.
    """
    if context.setting("held-out", "pairs") == "none":
        return {}
    try:
        found = {DEEP: context.table(DEEP, label="harmful", limit=count)}
        return found | {name: context.table(name, label="benign", limit=count) for name in HARMLESS}
    except ConfigError as error:
        raise ConfigError(f"{error}. {_remedy(context, context.setting('data', DATA))}") from error


def _remedy(context: "Context", name: str) -> str:
    return (
        f"Harmful answers do not come with this package: give --data-dir DIR with the tables {name}, {DEEP}, "
        f"{' and '.join(HARMLESS)}, or a labelled set of your own with --set {context.suite}.data=REF (./FILE, a "
        f"corpus, hf:OWNER/NAME) and --set {context.suite}.held-out=none"
    )
