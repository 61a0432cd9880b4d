"""Attacks that suites run."""
