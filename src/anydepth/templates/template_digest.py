"""Say which chat template a tokenizer has: its text, and a digest of all that a header is derived from."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from anydepth.templates.published import PublishedModel


def template_text(tokenizer: Any) -> str:
    """Return the tokenizer's chat template as text; named templates (`default`, `tool_use`) as one JSON text."""
    template = getattr(tokenizer, "chat_template", None)
    return json.dumps(template, sort_keys=True, ensure_ascii=False) if isinstance(template, dict) else template or ""


def template_digest(text: str, kwargs: Mapping[str, Any], row: PublishedModel | None) -> str:
    """Return the SHA-256 (hex) of a template's text, of its variables and of the row of `models.toml` that is used."""
    parts = [text]
    if kwargs:
        parts.append(json.dumps(kwargs, sort_keys=True, default=str))
    if row is not None:
        parts.append(json.dumps({key: getattr(row, key) for key in ("header", "answer", "read_token")}, sort_keys=True))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
