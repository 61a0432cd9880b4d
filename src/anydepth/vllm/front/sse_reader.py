"""Read server-sent events out of a stream of bytes that is cut anywhere."""

import json
from collections.abc import Callable, Iterator

from anydepth.server.answer.blocked import Record
from anydepth.server.http.sse import DONE, sse

_DATA = b"data:"


class Events:
    """Puts the parts of a stream together to events."""

    def __init__(self) -> None:
        self._held = bytearray()

    def push(self, part: bytes) -> Iterator[bytes]:
        """The events that are complete with this part, without the blank line."""
        self._held += part
        while (end := self._held.find(b"\n\n")) >= 0:
            event = bytes(self._held[:end])
            del self._held[: end + 2]
            yield event


def rewritten(event: bytes, write: Callable[[Record], list[Record]], rest: Callable[[], list[Record]]) -> bytes:
    """An event with its record rewritten; what stands before the end of the stream comes from `rest`."""
    data = event.strip()
    if not data.startswith(_DATA):
        return event + b"\n\n"  # a comment that keeps the connection open
    data = data.removeprefix(_DATA).strip()
    if data == b"[DONE]":
        return b"".join(map(sse, rest())) + DONE
    return b"".join(map(sse, write(json.loads(data))))
