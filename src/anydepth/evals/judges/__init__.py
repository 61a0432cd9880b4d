"""Judges of finished answers."""
