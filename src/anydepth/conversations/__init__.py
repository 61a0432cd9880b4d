"""Labelled conversations: tables, public corpora, splits and variants."""

from anydepth.probes.corpora import load
from anydepth.probes.dataset import Columns, Conversation
from anydepth.probes.splits import Selection, Split, balance, drop_near_duplicates, permissive, split_by_prompt

__all__ = [
    "Columns",
    "Conversation",
    "Selection",
    "Split",
    "balance",
    "drop_near_duplicates",
    "load",
    "permissive",
    "split_by_prompt",
]
