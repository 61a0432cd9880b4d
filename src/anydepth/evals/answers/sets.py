"""Gather harmless answers, stored ones and the model's own, and the contrast to them."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from anydepth.conversations.corpora import SHIPPED
from anydepth.conversations.dataset import Conversation
from anydepth.conversations.splits import balance
from anydepth.evals.answers.stored import stored
from anydepth.evals.context import Context, fresh_first
from anydepth.evals.transcript import Transcript
from anydepth.probes.recipe.recipe import read_recipe
from anydepth.probes.recipe.recipe_part import TRAIN

SetKind = Literal["benign", "contrast", "harmful"]

_PROMPTS = SHIPPED + "benign_prompts"
_SPARE = 20


@dataclass(frozen=True, slots=True)
class AnswerSet:
    """One set of answers.

    Attributes:
        name: In records and figures.
        table: Where its conversations are.
        kind: `benign`: every halt is a false alarm; `contrast`: harmful prompts that the model answers itself;
            `harmful`: harmful answers.
        label: Rows of this label only.
        written: The model answers the prompts itself; otherwise the stored answers are scanned.
        unseen: Only prompts of the half that no choice of the shipped probes was made on.
        tag: Tag of the category, if the table has one.
    """

    name: str
    table: str
    kind: SetKind = "benign"
    label: str | None = None
    written: bool = False
    unseen: bool = False
    tag: str | None = None


SETS = (
    AnswerSet("XSTest, own", "prompts_xstest", label="benign", written=True, unseen=True, tag="type"),
    AnswerSet("borderline, own", _PROMPTS, written=True),
    AnswerSet("utility, own", "prompts_utility", written=True),
    AnswerSet("XSTest, stored", "responses_xstest", unseen=True),
    AnswerSet("benign, stored", "pairs_benign_validation", label="benign", unseen=True),
    AnswerSet("validation, stored", "probe_validation", label="benign", unseen=True),
    AnswerSet("XSTest contrast, own", "prompts_xstest", "contrast", "harmful", written=True, tag="type"),
    AnswerSet("harmful, stored", "pairs_deep_validation", "harmful", "harmful", unseen=True),
)
"""The sets of the suite, in the order of its figures."""


@dataclass(frozen=True, slots=True)
class Item:
    """One answer of a set.

    Attributes:
        of: Its set.
        row: The conversation; its stored answer does not count if the model has written one.
        transcript: The answer.
    """

    of: AnswerSet
    row: Conversation
    transcript: Transcript

    @property
    def source(self) -> str:
        """Source key; tasks of one benchmark are one source (`bbh`)."""
        return family(self.row.source)

    @property
    def category(self) -> str | None:
        """What kind of prompt it is, where the table says so."""
        return self.row.tags.get(self.of.tag) if self.of.tag else None


def family(source: str) -> str:
    """`bbh` of `bbh-navigate`, `mmlu` of `mmlu-marketing`; other source keys as they are."""
    return re.sub(r"^(bbh|mmlu)-.*", r"\1", source)


def gather(context: Context, *, count: int, new_tokens: int, scan_tokens: int) -> list[Item]:
    """The answers of all sets: `count` of each, spread over its sources or categories; those to write are written."""
    rows = {each.name: _chosen(context, each, count) for each in SETS}
    prompts = {_key(each, row): context.prompt(row) for each in SETS if each.written for row in rows[each.name]}
    written = context.write(prompts, new_tokens)
    return [
        Item(each, row, written[key] if each.written else stored(context, key, row, scan_tokens))
        for each in SETS
        for row in rows[each.name]
        for key in [_key(each, row)]
    ]


def spread(rows: Sequence[Conversation], count: int, group: Callable[[Conversation], str]) -> list[Conversation]:
    """`count` rows, as many of each group as there are; within a group the first ones, other prompts before others."""
    turns = Counter[str]()
    numbered = []
    for place, row in fresh_first(list(enumerate(rows)), lambda item: item[1].prompt_key):
        turns[group(row)] += 1
        numbered.append((turns[group(row)], place))
    return [rows[place] for _, place in sorted(numbered)[:count]]


def _chosen(context: Context, of: AnswerSet, count: int) -> list[Conversation]:
    rows = not_trained_on(of.table, context.table(of.table, label=of.label, unseen=of.unseen))
    return spread(rows, count, lambda row: row.tags.get(of.tag, "") if of.tag else family(row.source))


def not_trained_on(table: str, rows: Sequence[Conversation]) -> list[Conversation]:
    """The rows of `table` without those that the recipe of the shipped probes trains on, and some spare ones.

    Which it takes depends on what else is left out as a near-duplicate; the spare ones make up for that.
    """
    taken = {row.id for row in trained_on(table, rows, _SPARE)}
    return [row for row in rows if row.id not in taken]


def trained_on(table: str, rows: Sequence[Conversation], spare: int) -> list[Conversation]:
    """The rows of `table` that the recipe of the shipped probes trains on, and up to `spare` more of each source."""
    parts = [part for part in read_recipe().parts if part.split == TRAIN and table in part.data]
    most = {part: None if part.limit is None else part.limit + spare for part in parts}
    return [
        row for part in parts for row in balance(filter(part.admits, rows), per_source=most[part], seed=part.seed).kept
    ]


def _key(of: AnswerSet, row: Conversation) -> str:
    return f"{of.name}|{row.id}"
