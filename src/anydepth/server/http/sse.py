"""Write server-sent events, as OpenAI's streams have them."""

import json
from typing import Any

DONE = b"data: [DONE]\n\n"
MEDIA_TYPE = "text/event-stream"
HEADERS = {"X-Accel-Buffering": "no"}
"""Tells nginx not to collect the stream."""


def sse(record: Any) -> bytes:
    """One event."""
    return b"data: " + json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"
