"""Answers that suites work on: stored, forced and the model's own."""
