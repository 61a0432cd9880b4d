"""Prompts and Safety Tokens from a chat template."""

from anydepth.template import ChatTemplate, Header, Prompt

__all__ = ["ChatTemplate", "Header", "Prompt"]
