"""Prompts and Safety Tokens from a chat template."""

from anydepth.templates.header import Header
from anydepth.templates.template import ChatTemplate, Prompt

__all__ = ["ChatTemplate", "Header", "Prompt"]
