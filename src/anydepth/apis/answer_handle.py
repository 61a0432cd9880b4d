"""Hold an answer over an API from outside of the thread that works on it."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

from anydepth.errors import ProviderError


class AnswerHandle:
    """Ends the requests of one answer, or of one scan, from another thread, and tells what failed in its checks.

    A thread that waits for a stream's next piece gets an error at once: the connection is shut down. A request whose
    response has not begun is waited for; none is made after it. One connection must not carry several requests at once,
    as HTTP/2 would have it.

    Attributes:
        over: True once it was cut.
        failure: Why the last look-ahead failed, if the provider was to blame; None after one that did not fail.
        first_failure: Why the first look-ahead failed that did, if the provider was to blame. A scan goes on behind it.
    """

    def __init__(self) -> None:
        self.over = False
        self.failure: ProviderError | None = None
        self.first_failure: ProviderError | None = None
        self._lock = threading.Lock()
        self._responses: list[Any] = []

    def cut(self) -> None:
        """End the streams that are open, and let no request begin; from any thread, any number of times."""
        with self._lock:
            self.over = True
            for response in self._responses:
                _shut_down(response)

    def require_wanted(self) -> None:
        """ProviderError once it was cut."""
        if self.over:
            raise ProviderError("the answer was given up; nothing more is asked for it")

    @contextlib.contextmanager
    def streaming(self, response: Any) -> Iterator[None]:
        """Let `cut` end this response, an HTTP client's, while it is read; ProviderError if it was cut already."""
        with self._lock:
            self._responses.append(response)
        try:
            self.require_wanted()
            yield
        finally:
            with self._lock:
                self._responses.remove(response)


def _shut_down(response: Any) -> None:
    """Shut the socket of a response down: closing it would not wake the thread that reads it."""
    stream = response.extensions.get("network_stream")
    if stream is None or response.is_closed:  # a closed one has given its connection back, to others
        return
    connection = stream.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
