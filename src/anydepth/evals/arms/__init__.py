"""Defences that suites compare, and their cached replay."""
