"""Choose stored answers, harmful and benign, that no choice of the shipped probes was made on."""

from typing import Literal

from anydepth.conversations.dataset import Conversation
from anydepth.conversations.splits import distinct
from anydepth.detectors import LinearProbe
from anydepth.evals.context import Context

Kind = Literal["harmful", "benign"]
KINDS: tuple[Kind, ...] = ("harmful", "benign")

TABLES: dict[Kind, tuple[str, ...]] = {
    "harmful": ("pairs_deep_validation",),
    "benign": ("pairs_benign_validation", "responses_xstest"),
}
"""Where answers of each kind are; of several tables they are taken in turn."""


def chosen(context: Context, kind: Kind, count: int) -> list[Conversation]:
    """`count` answers, of different requests as long as there are any."""
    tables = [context.table(name, label=kind, limit=count, unseen=True) for name in TABLES[kind]]
    mixed = [rows[place] for place in range(count) for rows in tables if place < len(rows)]
    return distinct(mixed).kept[:count]


def pool(context: Context, kind: Kind) -> list[Conversation]:
    """All answers of the kind."""
    return distinct(row for name in TABLES[kind] for row in context.table(name, label=kind, unseen=True)).kept


def described(probe: LinearProbe | None) -> str:
    """Where the answers are from, and what a probe's threshold has seen of them, for a summary's notes."""
    harmful, benign = (" and ".join(TABLES[kind]) for kind in KINDS)
    text = (
        f"Harmful answers are from {harmful}, benign ones from {benign}, to the half of the prompts on which no read, "
        "block or policy of the shipped probes was chosen; other models wrote them."
    )
    data = None if probe is None else probe.card.calibration.get("data")
    if not data:
        return text
    return (
        f"{text} The probe's threshold was set on {data}; as far as those are among the benign answers here, its false "
        "alarms on them are no test of it (the suite over-refusal has others)."
    )
