"""Labelled conversations: tables, public corpora, splits and variants."""
