"""Labelled conversations: tables, public corpora, splits and variants."""

from anydepth.conversations.corpora import load
from anydepth.conversations.dataset import Columns, Conversation
from anydepth.conversations.splits import Selection, Split, balance, drop_near_duplicates, permissive, split_by_prompt

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
