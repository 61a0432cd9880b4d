"""Prompts and Safety Tokens from a chat template."""
