"""Write server-sent events, as OpenAI's streams have them."""

import json
from typing import Any

DONE = b"data: [DONE]\n\n"
MEDIA_TYPE = "text/event-stream"
HEADERS = {"X-Accel-Buffering": "no"}
"""Tells nginx not to collect the stream."""


def sse(record: Any, event: str | None = None) -> bytes:
    """One event, with its name if it has one."""
    name = b"" if event is None else f"event: {event}\n".encode()
    return name + b"data: " + json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"
